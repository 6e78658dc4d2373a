import assert from "node:assert/strict";
import { execFile, execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after } from "node:test";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { writeRows } from "./support/run.js";
import { tinyLlama } from "./support/tiny-llama.js";

const root = fileURLToPath(new URL("../../", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "attune-install-"));
after(() => rmSync(folder, { recursive: true, force: true }));

const model = join(tinyLlama, "tied");
/** npm's own script, where npm started this run. */
const npm = process.env.npm_execpath;

function runNpm(args: readonly string[], cwd: string) {
  const [command, before] = npm === undefined ? ["npm", []] : [process.execPath, [npm]];
  return spawnSync(command, [...before, ...args], {
    cwd,
    encoding: "utf8",
    shell: npm === undefined && process.platform === "win32",
  });
}

function pack(of: string): string {
  const packed = runNpm(["pack", "--ignore-scripts", "--json", "--pack-destination", folder], of);
  assert.equal(packed.status, 0, packed.stderr);
  return join(folder, JSON.parse(packed.stdout)[0].filename);
}

function makeEnginePackage(): string {
  const script = join(root, "scripts/make-platform-package.mjs");
  const printed = execFileSync(process.execPath, [script, "--engine", join(root, "build/attune.node")], { encoding: "utf8" });
  return pack(printed.trim());
}

/** The project of somebody who installed attune; each test changes which engine is there. */
const project = join(folder, "project");
mkdirSync(project);
writeFileSync(join(project, "package.json"), JSON.stringify({ name: "somebodys-project", type: "module", private: true }));
const installing = runNpm(["install", "--prefer-offline", "--no-audit", "--no-fund", pack(root), makeEnginePackage()], project);
const isOffline =
  installing.status !== 0 && /ENOTFOUND|ECONNREFUSED|ETIMEDOUT|ECONNRESET|EAI_AGAIN|ENOTCACHED|network/.test(installing.stderr);
const skip = isOffline && "no package registry can be reached, so attune's dependencies cannot be installed";

/** How `npx attune` is run in the project. */
function inProject(env: Readonly<Record<string, string>>) {
  const isWindows = process.platform === "win32";
  const bin = join(project, "node_modules", ".bin", isWindows ? "attune.cmd" : "attune");
  const home = { ATTUNE_HOME: join(project, "home"), HF_HUB_OFFLINE: "1" };
  return { bin, options: { cwd: project, env: { ...process.env, ...home, ...env }, shell: isWindows } as const };
}

function attune(args: readonly string[], env: Readonly<Record<string, string>> = {}, input = "") {
  const { bin, options } = inProject(env);
  return spawnSync(bin, args, { ...options, encoding: "utf8", input });
}

test("packed and installed with the platform's engine, attune trains, chats, exports, and is imported from TypeScript", {
  skip,
}, () => {
  assert.equal(installing.status, 0, installing.stderr);
  writeRows(project);
  writeFileSync(
    join(project, "recipe.yaml"),
    `model_name_or_path: ${JSON.stringify(model)}\ndataset: rows.jsonl\noutput_dir: out\nplot_loss: true\n`,
  );
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  assert.equal(runNpm(["exec", "--offline", "--", "attune", "--version"], project).stdout, `${version}\n`); // which is what npx does
  const doctor = attune(["doctor"]);
  assert.match(doctor.stdout, /engine +\w+ \(/, doctor.stderr);
  const trained = attune(["train", "recipe.yaml", "max_steps=1"]);
  assert.equal(trained.status, 0, trained.stderr);
  assert.match(trained.stdout, /Done after/);
  assert.ok(readdirSync(join(project, "out")).includes("training_loss.png") || /step 1\/1/.test(trained.stdout));
  const answer = attune(["chat", "--model", model, "--adapter", "out", "-n", "4"], {}, "Where is the owl?\n");
  assert.equal(answer.status, 0, answer.stderr);
  const exported = attune(["export", "--adapter", "out", "--to", "hf", "--out", "exported"]);
  assert.equal(exported.status, 0, exported.stderr);
  assert.ok(readdirSync(join(project, "exported")).includes("model.safetensors"));
  assert.doesNotMatch(doctor.stderr + trained.stderr + answer.stderr, /compiling/);

  writeFileSync(
    join(project, "mine.ts"),
    `import { Chat, ConfigError, exportModel, type RecipeSettings, train } from "attune";
const model = ${JSON.stringify(model)};
const recipe: RecipeSettings = { model_name_or_path: model, dataset: "rows.jsonl", output_dir: "of-code", stage: "sft", max_steps: 1 };
// @ts-expect-error: lora_rank is meant
const misspelt: RecipeSettings = { ...recipe, lora_rnk: 4 };
const problem = await train(misspelt).catch((error: unknown) => (error instanceof ConfigError ? error.code : error));
const { train_loss }: { train_loss: number } = await train(recipe, { onEvent: (event) => event.type === "step" && console.log(event.loss) });
const chat = await Chat.open({ model, adapter: "of-code" });
let answer = "";
for await (const piece of chat.reply([{ role: "user", content: "Where is the owl?" }], { maxNewTokens: 4 })) answer += piece;
chat.close();
const { written } = await exportModel({ adapter: "of-code", to: "gguf", out: "of-code.gguf" });
console.log(train_loss > 0, problem, typeof answer, written.includes("model.gguf"));\n`,
  );
  const compiler = join(root, "node_modules/typescript/bin/tsc");
  for (const [module, resolution] of [
    ["nodenext", "nodenext"],
    ["preserve", "bundler"],
  ] as const) {
    const flags = `--strict --target es2023 --lib es2023,dom --module ${module} --moduleResolution ${resolution}`.split(" ");
    const { status, stdout } = spawnSync(process.execPath, [compiler, ...flags, "mine.ts"], { cwd: project, encoding: "utf8" });
    assert.ok(status === 0, `${resolution}: ${stdout}`);
  }
  const printed = spawnSync(process.execPath, ["mine.js"], { cwd: project, encoding: "utf8" });
  assert.match(printed.stdout, /^\d[\d.]*\ntrue CONFIG string true\n$/, printed.stderr);
});

test("an engine of another version, or for another system, is passed over", { skip }, () => {
  const nowhere = { CXX: "/no/compiler", ATTUNE_HOME: join(project, "nowhere") };
  const beside = join(project, `node_modules/@attune/engine-${process.platform}-${process.arch}`);
  const its = JSON.parse(readFileSync(join(beside, "package.json"), "utf8"));
  for (const [version, file] of [
    ["0.0.1", readFileSync(join(root, "build/attune.node"))],
    [its.version, Buffer.from("no library")],
  ] as const) {
    writeFileSync(join(beside, "package.json"), JSON.stringify({ ...its, version }));
    writeFileSync(join(beside, "attune.node"), file);
    assert.match(attune(["doctor"], nowhere).stdout, /no C\+\+ compiler found/);
  }
  rmSync(beside, { recursive: true });
});

test("without the platform's engine, the first use compiles one, and later uses find it", { skip }, () => {
  const env = { CXXFLAGS: "-O0" }; // soon done
  const first = attune(["doctor"], env);
  assert.match(first.stdout, /engine +\w+ \(/, first.stderr);
  assert.match(first.stderr, /engine: compiling \d+ files for this machine[\s\S]*built in/);
  const engines = readdirSync(join(project, "home/engines"));
  assert.equal(engines.length, 1);
  assert.deepEqual(readdirSync(join(project, "home/engines", engines[0]!)), ["attune.node"]);
  assert.equal(attune(["doctor"], env).stderr, "");

  const without = attune(["chat", "--model", model], { CXX: "/no/compiler" }, "hello\n");
  assert.equal(without.status, 1);
  assert.match(
    without.stderr,
    /^attune: the engine could not be compiled:\nengine: no C\+\+ compiler found[\s\S]*sudo apt install g\+\+/,
  );
  assert.doesNotMatch(without.stderr, /npm run build/);
  const lost = attune(["chat", "--model", model], { ATTUNE_HOME: join(project, "package.json/inside") }, "hello\n");
  assert.match(lost.stderr, /the engine cannot be compiled into .*Set ATTUNE_HOME to a folder of yours/);
});

test("processes that compile at the same time all get a whole engine", {
  skip: skip || (process.platform === "win32" && "the compiler is replaced by a script"),
}, async () => {
  // In place of a compiler: writes what it is to make in two halves, with time between them to see the first alone.
  const compiler = join(folder, "c++");
  writeFileSync(
    compiler,
    `#!/bin/sh
while [ $# -gt 0 ]; do case $1 in --version) echo 1; exit ;; -fsyntax-only) exit ;; -c) object=yes ;; -o) out=$2 ;; esac; shift; done
[ "$object" ] && exec touch "$out"
engine='${join(root, "build/attune.node")}'
head -c 1000000 "$engine" > "$out"; sleep 0.5; tail -c +1000001 "$engine" >> "$out"\n`,
    { mode: 0o755 },
  );
  const home = join(project, "at-once");
  const { bin, options } = inProject({ CXX: compiler, ATTUNE_HOME: home });
  const all = [0, 150, 300, 450, 600].map(async (wait) => {
    await setTimeout(wait);
    const { stdout, stderr } = await promisify(execFile)(bin, ["doctor"], options);
    assert.match(stdout, /engine +\w+ \(/, stderr);
  });
  await Promise.all(all);
  const [engine, ...others] = readdirSync(join(home, "engines"));
  assert.deepEqual([readdirSync(join(home, "engines", engine!)), others], [["attune.node"], []]);
});
