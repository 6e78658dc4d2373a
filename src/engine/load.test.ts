import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { loadEngine } from "./load.js";

test("an engine is loaded once", () => {
  assert.equal(loadEngine(), loadEngine());
});

/** What a package says whose engine is `addon`, or missing. */
function loadIn(addon: string | undefined): string {
  const folder = mkdtempSync(join(tmpdir(), "attune-load-"));
  try {
    const built = join(dirname(fileURLToPath(import.meta.url)), "..");
    cpSync(built, join(folder, "dist", "src"), { recursive: true, filter: (file) => !file.includes("node_modules") });
    writeFileSync(join(folder, "package.json"), '{ "type": "module" }');
    writeFileSync(join(folder, "package-lock.json"), "{}"); // which says that it is a clone
    if (addon !== undefined) {
      mkdirSync(join(folder, "build"));
      writeFileSync(join(folder, "build", "attune.node"), addon);
    }
    const code =
      'import("./dist/src/engine/load.js").then(({ loadEngine }) => loadEngine()).catch((e) => console.log(e.name, e.message))';
    return spawnSync(process.execPath, ["-e", code], { cwd: folder, encoding: "utf8" }).stdout;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

test("a missing engine says how to build it", () => {
  assert.match(
    loadIn(undefined),
    /^EngineError .*attune\.node does not exist: the engine has not been built\.\nBuild it here with: npm run build\n/,
  );
});

test("an engine that is no library says what it may be, and how to build it", () => {
  const message = loadIn("not a library".repeat(1000));
  assert.match(message, /^EngineError .*attune\.node cannot be loaded: /);
  assert.match(message, /\nBuild it here with: npm run build\n/);
  if (process.platform === "linux") assert.match(message, /built for another system or processor than this one/);
});
