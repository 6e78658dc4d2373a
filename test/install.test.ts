import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
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

/** A new project in which these packages are installed; undefined, and the test is skipped, where no registry can be reached. */
function install(t: TestContext, name: string, packages: readonly string[]): string | undefined {
  const project = join(folder, name);
  mkdirSync(project);
  writeFileSync(join(project, "package.json"), JSON.stringify({ name: "somebodys-project", type: "module", private: true }));
  const { status, stderr } = runNpm(["install", "--prefer-offline", "--no-audit", "--no-fund", ...packages], project);
  if (status !== 0 && /ENOTFOUND|ECONNREFUSED|ETIMEDOUT|ECONNRESET|EAI_AGAIN|ENOTCACHED|network/.test(stderr)) {
    t.skip("no package registry can be reached, so attune's dependencies cannot be installed");
    return undefined;
  }
  assert.equal(status, 0, stderr);
  return project;
}

/** Runs `npx attune` in a project. */
function attune(project: string, args: readonly string[], env: Readonly<Record<string, string>> = {}, input = "") {
  const bin = join(project, "node_modules", ".bin", process.platform === "win32" ? "attune.cmd" : "attune");
  const home = { ATTUNE_HOME: join(project, "home"), HF_HUB_OFFLINE: "1" };
  const options = { cwd: project, encoding: "utf8", input, env: { ...process.env, ...home, ...env } } as const;
  return spawnSync(bin, args, { ...options, shell: process.platform === "win32" });
}

function makeEnginePackage(): string {
  const script = join(root, "scripts/make-platform-package.mjs");
  const printed = execFileSync(process.execPath, [script, "--engine", join(root, "build/attune.node")], { encoding: "utf8" });
  return pack(printed.trim());
}

test("packed and installed with the platform's engine, attune trains, chats, exports, and is imported from TypeScript", async (t) => {
  const project = install(t, "with-engine", [pack(root), makeEnginePackage()]);
  if (project === undefined) return;
  writeRows(project);
  writeFileSync(
    join(project, "recipe.yaml"),
    `model_name_or_path: ${JSON.stringify(model)}\ndataset: rows.jsonl\noutput_dir: out\nplot_loss: true\n`,
  );
  const doctor = attune(project, ["doctor"]);
  assert.match(doctor.stdout, /engine +\w+ \(/, doctor.stderr);
  const trained = attune(project, ["train", "recipe.yaml", "max_steps=1"]);
  assert.equal(trained.status, 0, trained.stderr);
  assert.match(trained.stdout, /Done after/);
  assert.ok(readdirSync(join(project, "out")).includes("training_loss.png") || /step 1\/1/.test(trained.stdout));
  const answer = attune(project, ["chat", "--model", model, "--adapter", "out", "-n", "4"], {}, "Where is the owl?\n");
  assert.equal(answer.status, 0, answer.stderr);
  const exported = attune(project, ["export", "--adapter", "out", "--to", "hf", "--out", "exported"]);
  assert.equal(exported.status, 0, exported.stderr);
  assert.ok(readdirSync(join(project, "exported")).includes("model.safetensors"));
  assert.equal(trained.stderr + answer.stderr, "", "nothing was compiled");

  writeFileSync(
    join(project, "mine.ts"),
    `import { ConfigError, train } from "attune";
const recipe = { model_name_or_path: ${JSON.stringify(model)}, dataset: "rows.jsonl", output_dir: "of-code", max_steps: 1 };
const { train_loss }: { train_loss: number } = await train(recipe, { onEvent: (event) => event.type === "step" && console.log(event.loss) });
console.log(train_loss > 0, ConfigError.name);\n`,
  );
  const compiler = join(root, "node_modules/typescript/bin/tsc");
  for (const resolution of [
    ["nodenext", "nodenext"],
    ["preserve", "bundler"],
  ] as const) {
    const [module, moduleResolution] = resolution;
    const flags = `--strict --target es2023 --lib es2023,dom --module ${module} --moduleResolution ${moduleResolution}`.split(
      " ",
    );
    const { status, stdout } = spawnSync(process.execPath, [compiler, ...flags, "mine.ts"], { cwd: project, encoding: "utf8" });
    assert.ok(status === 0, `${moduleResolution}: ${stdout}`);
  }
  const printed = spawnSync(process.execPath, ["mine.js"], { cwd: project, encoding: "utf8" });
  assert.match(printed.stdout, /^\d[\d.]*\ntrue ConfigError\n$/, printed.stderr);
});

test("without the platform's engine, the first use compiles one, and later uses find it", async (t) => {
  const project = install(t, "compiling", [pack(root)]);
  if (project === undefined) return;
  const env = { CXXFLAGS: "-O0" }; // soon done
  const first = attune(project, ["doctor"], env);
  assert.match(first.stdout, /engine +\w+ \(/, first.stderr);
  assert.match(first.stderr, /engine: compiling \d+ files for this machine[\s\S]*built in/);
  const engines = readdirSync(join(project, "home/engines"));
  assert.equal(engines.length, 1);
  assert.deepEqual(readdirSync(join(project, "home/engines", engines[0]!)), ["attune.node"]);
  assert.equal(attune(project, ["doctor"], env).stderr, "");

  const without = attune(project, ["chat", "--model", model], { CXX: "/no/compiler" }, "hello\n");
  assert.equal(without.status, 1);
  assert.match(
    without.stderr,
    /^attune: the engine could not be compiled:\nengine: no C\+\+ compiler found[\s\S]*sudo apt install g\+\+/,
  );
  assert.doesNotMatch(without.stderr, /npm run build/);
  const lost = attune(project, ["chat", "--model", model], { ATTUNE_HOME: join(project, "package.json/inside") }, "hello\n");
  assert.match(lost.stderr, /the engine cannot be compiled into .*Set ATTUNE_HOME to a folder of yours/);
});

test("an engine of another version, or for another system, is passed over", (t) => {
  const project = install(t, "unfit", [pack(root)]);
  if (project === undefined) return;
  const beside = join(project, `node_modules/@attune/engine-${process.platform}-${process.arch}`);
  mkdirSync(beside, { recursive: true });
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  for (const [its, file] of [
    ["0.0.1", readFileSync(join(root, "build/attune.node"))],
    [version, Buffer.from("no library")],
  ] as const) {
    writeFileSync(join(beside, "package.json"), JSON.stringify({ name: "an-engine", version: its }));
    writeFileSync(join(beside, "attune.node"), file);
    assert.match(attune(project, ["doctor"], { CXX: "/no/compiler" }).stdout, /no C\+\+ compiler found/);
  }
});
