import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import ts from "typescript";
import { makeFolder, writeRows } from "./support/run.js";
import { tinyLlama } from "./support/tiny-llama.js";

const root = join(import.meta.dirname, "../..");

test("the README's example compiles under the project's rules, and runs", () => {
  const readme = readFileSync(join(root, "README.md"), "utf8");
  const [, example] = /```ts\n(.*?)```/s.exec(readme)!;
  const data = makeFolder();
  const source = example!
    .replaceAll("HuggingFaceTB/SmolLM2-135M-Instruct", join(tinyLlama, "tied"))
    .replaceAll('"orders.jsonl"', JSON.stringify(writeRows(data)))
    .replaceAll("runs/orders", join(data, "out"));
  assert.notEqual(source, example);

  const folder = join(root, "build/readme-example"); // inside the package, so that it can import it by its name
  mkdirSync(folder, { recursive: true });
  const file = join(folder, "example.ts");
  writeFileSync(file, source);
  const config = ts.parseJsonConfigFileContent(
    ts.readConfigFile(join(root, "tsconfig.json"), ts.sys.readFile).config,
    ts.sys,
    root,
  );
  const program = ts.createProgram([file], {
    ...config.options,
    incremental: false,
    rootDir: root,
    outDir: folder,
    noEmit: false,
  });
  const problems = [...ts.getPreEmitDiagnostics(program)].filter((problem) => problem.file?.fileName.endsWith("example.ts"));
  assert.deepEqual(
    problems.map((problem) => ts.flattenDiagnosticMessageText(problem.messageText, "\n")),
    [],
  );
  program.emit(program.getSourceFile(file), (path, text) => {
    if (path.endsWith(".js")) writeFileSync(join(folder, "example.js"), text);
  });
  const printed = execFileSync(process.execPath, [join(folder, "example.js")], { encoding: "utf8", cwd: folder });
  assert.match(printed, /^1 \d/m);
  assert.match(printed, /\d+ tokens\/s, \d\.\d GB at most/);
  rmSync(folder, { recursive: true });
});
