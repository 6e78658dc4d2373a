import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { stringify } from "yaml";
import { hashOf, makeFolder, tinyRecipe } from "./support/run.js";
import { tinyLlama } from "./support/tiny-llama.js";

const bin = join(import.meta.dirname, "../../bin/attune.js");

function attune(args: readonly string[], { env = {}, input = "" }: { env?: Record<string, string>; input?: string } = {}) {
  return spawnSync(process.execPath, [bin, ...args], { encoding: "utf8", env: { ...process.env, ...env }, input });
}

function writeRecipe(folder: string, changes: Readonly<Record<string, unknown>> = {}): string {
  const path = join(folder, "recipe.yaml");
  writeFileSync(path, stringify(tinyRecipe(folder, changes)));
  return path;
}

/** Starts a long run and resolves when it has printed its first step. */
async function startLongRun(folder: string): Promise<{ child: ChildProcess; ended: Promise<number | null> }> {
  const recipe = writeRecipe(folder, { num_train_epochs: 100_000, save_strategy: "steps", save_steps: 20 });
  const child = spawn(process.execPath, [bin, "train", recipe], { stdio: ["ignore", "pipe", "pipe"] });
  const ended = new Promise<number | null>((resolve) => child.on("exit", resolve));
  await new Promise<void>((resolve) => child.stdout!.on("data", (text: Buffer) => String(text).includes("step 3") && resolve()));
  return { child, ended };
}

test("train, chat and the files between them, as a user types it", () => {
  const folder = makeFolder();
  const trained = attune(["train", writeRecipe(folder), "num_train_epochs=12", "--learning-rate", "3e-3"]);
  assert.equal(trained.status, 0, trained.stderr);
  assert.match(trained.stdout, /weights train/);
  assert.match(trained.stdout, /step \d+\/\d+ {2}loss \d/);
  assert.match(trained.stdout, /Done after/);
  const answer = attune(
    ["chat", "--model", join(tinyLlama, "tied"), "--adapter", join(folder, "out"), "--max-new-tokens", "16"],
    {
      input: "Where is the owl??\n",
    },
  );
  assert.equal(answer.status, 0, answer.stderr);
  assert.match(answer.stdout, /^on the /);
  const byRecipe = attune(["chat", join(folder, "recipe.yaml"), "max_new_tokens=16"], { input: "Where is the owl??\n" });
  assert.equal(byRecipe.stdout, answer.stdout, byRecipe.stderr);
});

test("a small run that a large process started tells its own peak of memory", () => {
  const folder = makeFolder();
  const held = Buffer.alloc(900 << 20, 1); // every page is touched
  const trained = attune(["train", writeRecipe(folder)]);
  assert.equal(trained.status, 0, trained.stderr);
  const { peak_memory_bytes } = JSON.parse(readFileSync(join(folder, "out/all_results.json"), "utf8"));
  assert.ok(peak_memory_bytes > 20e6 && peak_memory_bytes < 600e6, `${peak_memory_bytes} bytes under ${held.length}`);
  const steps = readFileSync(join(folder, "out/events.jsonl"), "utf8").trim().split("\n");
  for (const { peakMemoryBytes } of steps.map((line) => JSON.parse(line)))
    assert.ok(peakMemoryBytes === undefined || peakMemoryBytes <= peak_memory_bytes, `${peakMemoryBytes}`);
  rmSync(folder, { recursive: true });
});

test("two methods on one base, changed between turns: each answers as it does alone, and the base as if there were none", () => {
  const question = "Where is the owl??";
  const chat = (adapters: readonly string[], lines: readonly string[]) => {
    const flags = adapters.flatMap((adapter) => ["--adapter", adapter]);
    const said = attune(["chat", "--model", join(tinyLlama, "tied"), "--max-new-tokens", "8", ...flags], {
      input: lines.join("\n"),
    });
    assert.equal(said.status, 0, said.stderr);
    return said.stdout.split("\n");
  };
  const folder = makeFolder();
  const methods = {
    a: ["finetuning_type=lora"],
    b: ["finetuning_type=adapter", "adapter_config=pfeiffer", "reduction_factor=2"],
  };
  const alone: Record<string, string> = { base: chat([], [question])[0]! };
  for (const [name, settings] of Object.entries(methods)) {
    const out = join(folder, name);
    const recipe = writeRecipe(folder, { output_dir: out });
    const trained = attune(["train", recipe, "num_train_epochs=6", "learning_rate=1e-2", ...settings]);
    assert.equal(trained.status, 0, trained.stderr);
    alone[name] = chat([out], [question])[0]!;
  }
  assert.equal(new Set(Object.values(alone)).size, 3, "three different answers");

  const turns = ["/base", "/adapter b", "/adapter a", "/base", "/adapter b"];
  const answers = chat(
    Object.keys(methods).map((name) => `${name}=${join(folder, name)}`),
    [question, ...turns.flatMap((turn) => ["/reset", turn, question])],
  );
  assert.deepEqual(
    answers.slice(0, 6),
    ["a", "base", "b", "a", "base", "b"].map((name) => alone[name]),
  );
});

test("exit codes: 2 for bad input, 5 for what does not fit, each with a word on what to do", () => {
  const folder = makeFolder();
  const recipe = writeRecipe(folder);
  const typo = attune(["train", recipe, "lora_rnak=4"]);
  assert.equal(typo.status, 2);
  assert.match(typo.stderr, /lora_rnak.*Did you mean "?lora_rank/);
  assert.equal(attune(["train", join(folder, "missing.yaml")]).status, 2);

  const large = attune(["train", recipe], { env: { ATTUNE_MEMORY: "0.0105" } });
  assert.equal(large.status, 5, large.stderr);
  assert.match(large.stderr, /needs about .* are available\. .*gradient_checkpointing=true|smaller or quantized/);
  const told = readFileSync(join(folder, "out/events.jsonl"), "utf8").trim().split("\n");
  const types = told.map((line) => JSON.parse(line).type);
  assert.ok(!types.includes("start") && types.at(-1) === "failed", `it ends before it starts: ${types}`);
  assert.equal(attune(["train", recipe], { env: { ATTUNE_ISA: "avx1024" } }).status, 1);
});

test("Ctrl-C once finishes the step, saves and exits with 130; the run can go on", async () => {
  const folder = makeFolder();
  const { child, ended } = await startLongRun(folder);
  child.kill("SIGINT");
  assert.equal(await ended, 130);
  const names = readdirSync(join(folder, "out"));
  assert.ok(names.includes("adapter_model.safetensors"));
  const saved = Math.max(...names.flatMap((name) => /^checkpoint-(\d+)$/.exec(name)?.[1] ?? []).map(Number));
  const resumed = attune(["train", join(folder, "recipe.yaml"), "resume_from_checkpoint=true", `max_steps=${saved + 3}`]);
  assert.equal(resumed.status, 0, resumed.stderr);
  assert.match(resumed.stdout, new RegExp(`going on from step ${saved}`));
});

test("Ctrl-C twice stops at once, and leaves only complete checkpoints", async () => {
  const folder = makeFolder();
  const { child, ended } = await startLongRun(folder);
  child.kill("SIGINT");
  child.kill("SIGINT");
  assert.equal(await ended, 130);
  for (const name of readdirSync(join(folder, "out")))
    if (/^checkpoint-/.test(name)) assert.ok(existsSync(join(folder, "out", name, ".complete")));
});

test("kill -9 at any moment: the newest complete checkpoint is found and the run goes on from it", async () => {
  const folder = makeFolder();
  for (let round = 0; round < 6; round++) {
    const { child, ended } = await startLongRun(folder);
    await new Promise((resolve) => setTimeout(resolve, 40 * round));
    child.kill("SIGKILL");
    await ended;
    const resumed = attune(["train", join(folder, "recipe.yaml"), "resume_from_checkpoint=true", "max_steps=1"]);
    assert.equal(resumed.status, 0, resumed.stderr);
    rmSync(join(folder, "out"), { recursive: true });
  }
});

test("a full disk ends the run with 4, tells what is needed, and leaves no half checkpoint", (t) => {
  const folder = makeFolder();
  const out = join(folder, "out");
  mkdirSync(out);
  if (spawnSync("mount", ["-t", "tmpfs", "-o", "size=512k", "tmpfs", out]).status !== 0)
    return t.skip("mounting a small disk needs root");
  try {
    const run = attune(["train", writeRecipe(folder, { save_strategy: "steps", save_steps: 1 })]);
    assert.equal(run.status, 4, run.stderr);
    assert.match(run.stderr, /No space left: need .* have .* at /i);
    for (const name of readdirSync(out)) if (/^checkpoint-/.test(name)) assert.ok(existsSync(join(out, name, ".complete")), name);
  } finally {
    execFileSync("umount", [out]);
  }
});

test("a row that is no row is named with its file and line", () => {
  const folder = makeFolder();
  const recipe = writeRecipe(folder);
  writeFileSync(
    join(folder, "rows.jsonl"),
    `${readFileSync(join(folder, "rows.jsonl"), "utf8")}\n{"question": "?", "reply": "!"}\n`,
  );
  const run = attune(["train", recipe]);
  assert.equal(run.status, 2);
  assert.match(run.stderr, /rows\.jsonl:25: .*columns/s);
});

test("an adapter for another base is refused before anything is answered", () => {
  const folder = makeFolder();
  attune(["train", writeRecipe(folder, { max_steps: 1 })]);
  const path = join(folder, "out/adapter_config.json");
  const before = hashOf(path);
  const chat = attune(["chat", "--model", join(tinyLlama, "tied"), "--adapter", join(folder, "nowhere")], { input: "hi\n" });
  assert.equal(chat.status, 2);
  writeFileSync(path, readFileSync(path, "utf8").replace('"r": 8', '"r": 4'));
  const wrongRank = attune(["chat", "--model", join(tinyLlama, "tied"), "--adapter", join(folder, "out")], { input: "hi\n" });
  assert.equal(wrongRank.status, 2);
  assert.match(wrongRank.stderr, /of another shape/);
  assert.notEqual(hashOf(path), before);
});
