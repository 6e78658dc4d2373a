import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";

const script = fileURLToPath(new URL("../../scripts/check-imports.mjs", import.meta.url));

/** Runs the check on a tree made of these files: the problems it names, and how it ends. */
function check(files: Record<string, string>): { problems: string[]; exitCode: number | null; summary: string } {
  const root = mkdtempSync(join(tmpdir(), "attune-imports-"));
  try {
    for (const [path, text] of Object.entries(files)) {
      mkdirSync(dirname(join(root, path)), { recursive: true });
      writeFileSync(join(root, path), text);
    }
    const { stdout, stderr, status } = spawnSync(process.execPath, [script, root], { encoding: "utf8" });
    return { problems: stderr.split("\n").filter((line) => line !== ""), exitCode: status, summary: stdout.trim() };
  } finally {
    rmSync(root, { recursive: true });
  }
}

test("a tree in order passes", () => {
  const result = check({
    "src/errors.ts": "export class E {}",
    "src/core/tensor.ts": 'import { E } from "../errors.js";\nimport type { Tape } from "./tape.js";\nexport { E };',
    "src/core/tape.ts": 'import { E } from "./tensor.js";\nexport interface Tape { e: E }',
    "src/index.ts": 'export * from "./core/tensor.js";\nexport * from "./cli/main.js";',
    "src/cli/main.ts":
      'import fs from "node:fs";\nimport z from "zod";\nconst lazy = () => import("../core/tape.js");\nexport { fs, z, lazy };',
    "test/a.test.ts": 'import "../src/cli/main.js";',
    "examples/a.ts": 'import "attune";\nimport "../src/index.js";\nimport "./b.js";',
    "examples/b.ts": "export {};",
    "bin/attune.js": 'import "../dist/src/cli/main.js";',
  });
  assert.deepEqual(result.problems, []);
  assert.equal(result.exitCode, 0);
  assert.equal(result.summary, "9 files, 11 imports between them, 0 against the rules");
});

test("each rule is enforced, with file, line and both ends", () => {
  const result = check({
    "src/core/tensor.ts":
      '// a comment with import "../cli/main.js"\nimport type { Main } from "../cli/main.js";\nexport type T = Main;',
    "src/cli/main.ts": 'export type Main = import("../serve/server.js").Server;\nawait import("../../dist/src/core/tensor.js");',
    "src/serve/server.ts":
      'export { main } from "../cli/main.js";\nimport "../index.js";\nimport "../../test/help.js";\nexport type Server = 1;',
    "src/index.ts": "export {};",
    "src/utils/a.ts": "export {};",
    "test/help.ts": "export {};",
    "examples/a.ts": 'import "../src/core/tensor.js";',
  });
  assert.deepEqual(result.problems.sort(), [
    "examples/a.ts:1: examples/a.ts → src/core/tensor.ts: only test/ and bench/ reach into rooms; import src/index.ts",
    "src/cli/main.ts:2: src/cli/main.ts → dist/src/core/tensor.ts: what was built is not imported; import the source",
    "src/core/tensor.ts:2: src/core/tensor.ts → src/cli/main.ts: room core may import only rooms above it, and cli is below",
    "src/serve/server.ts:1: src/serve/server.ts → src/cli/main.ts: room serve may import only rooms above it, and cli is below",
    "src/serve/server.ts:2: src/serve/server.ts → src/index.ts: room serve may import only rooms above it, and index is below",
    "src/serve/server.ts:3: src/serve/server.ts → test/help.ts: src/ imports nothing outside itself",
    'src/utils/a.ts:1: "utils" is not one of the rooms that scripts/check-imports.mjs lists',
  ]);
  assert.equal(result.exitCode, 1);
});

test("what the CLI does not need at its start waits for import()", () => {
  const result = check({
    "src/cli/attune.ts": 'import "./train.js";\nimport type { T } from "../core/tensor.js";\nexport type { T };',
    "src/cli/train.ts": 'import "../errors.js";\nawait import("./view.js");\nimport "../core/tensor.js";',
    "src/cli/view.ts": 'import "../core/tensor.js";',
    "src/core/tensor.ts": "export type T = 1;",
    "src/errors.ts": "export {};",
  });
  assert.deepEqual(result.problems, [
    "src/cli/train.ts:3: src/cli/train.ts → src/core/tensor.ts: every start of attune would load it; use import() where it is needed",
  ]);
});

test("a cycle between files is found once, with the whole way round", () => {
  const result = check({
    "src/core/a.ts": 'import "./b.js";',
    "src/core/b.ts": 'import "./c.js";',
    "src/core/c.ts": 'import { type X, y } from "./a.js";\nexport type { X };\nexport { y };',
    "src/core/d.ts": 'import "./a.js";',
  });
  assert.deepEqual(result.problems, [
    "src/core/c.ts:1: a cycle of imports: src/core/a.ts → src/core/b.ts → src/core/c.ts → src/core/a.ts",
  ]);
});
