import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join, posix } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));

interface Packed {
  /** Of the archive that is downloaded, and of what it becomes. */
  readonly size: number;
  readonly unpackedSize: number;
  readonly files: readonly { readonly path: string }[];
}

/** What `npm publish` would send. */
function packed(): Packed {
  const npm = process.env.npm_execpath; // npm's own script, where npm started this run
  const args = ["pack", "--dry-run", "--json", "--ignore-scripts", "--silent"];
  const [command, before] = npm === undefined ? ["npm", []] : [process.execPath, [npm]];
  const json = execFileSync(command, [...before, ...args], { cwd: root, encoding: "utf8" });
  return JSON.parse(json)[0];
}

test("the package holds what is needed to run, nothing of the tests, and no file that imports one left behind", () => {
  const files = packed().files.map(({ path }) => path);
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

test("the package is small, holds no source maps, and all that its README links to", (t) => {
  const { size, unpackedSize, files } = packed();
  t.diagnostic(
    `${(size / 1e6).toFixed(2)} MB to download, ${(unpackedSize / 1e6).toFixed(1)} MB unpacked, ${files.length} files`,
  );
  assert.ok(size < 1.2e6, `${size} bytes`);
  assert.ok(unpackedSize < 5e6, `${unpackedSize} bytes unpacked`);

  const shipped = new Set(files.map(({ path }) => path));
  assert.deepEqual(
    [...shipped].filter((path) => path.endsWith(".map")),
    [],
  );
  for (const readme of [...shipped].filter((path) => /^README[\w.]*\.md$/.test(path))) {
    const links = [...readFileSync(join(root, readme), "utf8").matchAll(/\]\((?!https?:|#)([^)#\s]+)/g)].map(([, to]) => to!);
    assert.ok(links.length > 0);
    for (const to of links) assert.ok(shipped.has(posix.normalize(to)), `${readme} links to ${to}, which is not in the package`);
  }
});
