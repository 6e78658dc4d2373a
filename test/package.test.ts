import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join, posix } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));

/** The paths of what `npm publish` would send. */
function packedFiles(): string[] {
  const npm = process.env.npm_execpath; // npm's own script, where npm started this run
  const args = ["pack", "--dry-run", "--json", "--ignore-scripts", "--silent"];
  const [command, before] = npm === undefined ? ["npm", []] : [process.execPath, [npm]];
  const json = execFileSync(command, [...before, ...args], { cwd: root, encoding: "utf8" });
  return JSON.parse(json)[0].files.map(({ path }: { path: string }) => path);
}

test("the package holds what is needed to run, nothing of the tests, and no file that imports one left behind", () => {
  const files = packedFiles();
  for (const needed of [
    "bin/attune.js",
    "dist/src/index.js",
    "dist/src/index.d.ts",
    "engine/addon.cpp",
    "scripts/build-engine.mjs",
  ])
    assert.ok(files.includes(needed), needed);
  assert.deepEqual(
    files.filter((file) => /\.test\.|(^|\/)(testing|test|bench)\/|^scripts\/test/.test(file)),
    [],
  );

  const shipped = new Set(files);
  const sources = files.filter((file) => /\.(m?js|d\.ts)$/.test(file));
  const left = sources.flatMap((file) =>
    [...readFileSync(join(root, file), "utf8").matchAll(/(?:\bfrom |\bimport |\bimport\()"(\.{1,2}\/[^"]+)"/g)]
      .map(([, specifier]) => posix.join(posix.dirname(file), specifier!))
      .filter((imported) => !shipped.has(imported))
      .map((imported) => `${file} imports ${imported}`),
  );
  assert.deepEqual(left, []);
});
