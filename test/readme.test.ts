import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import ts from "typescript";
import { parse } from "yaml";
import { blocksOf, makeProject, root, runCommand, runnableIn } from "./support/doc-blocks.js";

const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

/** Lines that other tests run whole: the installation in test/install.test.ts, the rest by .ci/run and by hand before a release. */
function isRunElsewhere(line: string): boolean {
  const [, script] = /^npm (?:run )?(\w+)$/.exec(line) ?? [];
  if (script !== undefined && script in scripts) return true;
  return line === "npm install attune" || /^git clone \S+( && cd attune)?$/.test(line);
}

for (const readme of ["README.md", "README.zh.md"])
  test(`${readme}: each block runs in a project as it stands, one after the other`, () => {
    const { folder, inProject } = makeProject();
    const said: string[] = [];
    for (const { language, text } of blocksOf(readme)) {
      if (language === "yaml" && text.includes("output_dir")) writeFileSync(join(folder, "recipe.yaml"), inProject(text));
      else if (language === "yaml") said.push(tryFragment(text, folder));
      else if (language === "sh") said.push(...text.split("\n").map((line) => runLine(line, folder, inProject)));
      else if (language === "ts") said.push(runExample(inProject(text), folder));
      else assert.equal(language, "text", "nothing runs it");
    }
    assert.ok(said.filter((output) => output !== "").length >= 10, "most lines say something");
    assert.match(said.join("\n"), /^1 \d[\s\S]*\d+ tokens\/s, \d\.\d GB at most/m);
    rmSync(folder, { recursive: true });
  });

/** Runs a line of a shell block. Returns what it printed. */
function runLine(line: string, folder: string, inProject: (text: string) => string): string {
  const command = line.replace(/\s+#.*$/, "").trim();
  if (command === "" || isRunElsewhere(command)) return "";
  return runCommand(inProject(command), folder);
}

/** Runs the recipe with the settings of a block that is no whole recipe. */
function tryFragment(text: string, folder: string): string {
  const settings = Object.entries(parse(text) as Record<string, unknown>).map(([key, value]) => `${key}=${value}`);
  const args = ["train", "recipe.yaml", ...settings, "output_dir=runs/another", "overwrite_output_dir=true", "max_steps=1"];
  return execFileSync(process.execPath, [join(root, "bin/attune.js"), ...args], { cwd: folder, encoding: "utf8" });
}

/** Compiles TypeScript under the project's rules, and runs it. */
function runExample(source: string, folder: string): string {
  const file = join(folder, "example.ts");
  writeFileSync(file, source);
  symlinkSync(join(root, "node_modules/@types"), join(folder, "node_modules/@types"), "junction");
  const { config } = ts.readConfigFile(join(root, "tsconfig.json"), ts.sys.readFile);
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root);
  const program = ts.createProgram([file], { ...options, incremental: false, composite: false, rootDir: folder, outDir: folder });
  const problems = ts.getPreEmitDiagnostics(program).filter((problem) => problem.file?.fileName.endsWith("example.ts"));
  assert.deepEqual(
    problems.map((problem) => ts.flattenDiagnosticMessageText(problem.messageText, "\n")),
    [],
  );
  program.emit(program.getSourceFile(file), (path, text) => path.endsWith("example.js") && writeFileSync(path, text));
  return execFileSync(process.execPath, ["example.js"], { encoding: "utf8", cwd: folder });
}

test("both READMEs show the same commands, recipes and code", () => {
  assert.deepEqual(runnableIn("README.zh.md"), runnableIn("README.md"));
});
