import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Readable } from "node:stream";
import test from "node:test";
import { stringify } from "yaml";
import { main } from "../src/cli/main.js";
import { parts } from "../src/cli/parts.js";
import type { Io } from "../src/cli/terminal.js";
import {
  AttuneError,
  Chat,
  checkRecipe,
  InterruptedError,
  type RecordedEvent,
  readRun,
  train,
  trainEvents,
} from "../src/index.js";
import { type AnyRecipe, collect, hashOf, makeFolder, tinyRecipe, trace } from "./support/run.js";
import { tinyLlama } from "./support/tiny-llama.js";

const short = { packing: false, num_train_epochs: 1, max_steps: 3 };

/** Plain text, then conversations twice: three stages of three steps. */
function pipelineRecipe(folder: string, changes: Readonly<Record<string, unknown>> = {}): AnyRecipe {
  const texts = join(folder, "texts.jsonl");
  const rows = Array.from({ length: 12 }, (_, i) =>
    JSON.stringify({ text: `The ${"very ".repeat(i)}old owl sits on the roof.` }),
  );
  writeFileSync(texts, rows.join("\n"));
  return tinyRecipe(folder, {
    ...short,
    stages: [{ stage: "pt", dataset: texts }, "sft", { stage: "sft", learning_rate: 1e-3, seed: 7 }],
    ...changes,
  });
}

async function runAll(recipe: AnyRecipe, onEvent: (event: RecordedEvent) => void = () => {}, signal?: AbortSignal) {
  const events: RecordedEvent[] = [];
  for await (const event of trainEvents(recipe, signal)) {
    events.push(event);
    onEvent(event);
  }
  return events;
}

const stages = ["1-pt", "2-sft", "3-sft"];
const weightsOf = (folder: string, name = "adapter_model.safetensors") =>
  stages.map((stage) => hashOf(join(folder, "out", stage, name)));
const recordOf = (folder: string) => JSON.parse(readFileSync(join(folder, "out/pipeline.json"), "utf8"));

test("stages run one after the other, each from what the last one saved, exactly as runs by hand do", async () => {
  const folder = makeFolder();
  const recipe = pipelineRecipe(folder);
  const events = await runAll(recipe);
  const about = events.filter((event) => event.type === "stage");
  assert.deepEqual(
    about.map(({ name, number, of, objective, outputDir, isDone }) => [name, number, of, objective, outputDir, isDone]),
    stages.map((name, i) => [name, i + 1, 3, name.slice(2), join(folder, "out", name), false]),
  );
  assert.deepEqual([...new Set(events.map(({ stage }) => stage))], stages);
  assert.equal(events.filter(({ type }) => type === "end").length, 3);

  const byHand = makeFolder();
  const { stages: list, ...common } = recipe;
  const traces: string[] = [];
  for (const [i, item] of (list as unknown as (string | Record<string, unknown>)[]).entries()) {
    const start = i === 0 ? {} : { adapter_name_or_path: join(byHand, "out", stages[i - 1]!) };
    const own = typeof item === "string" ? { stage: item } : item;
    traces.push(...trace(await collect({ ...common, ...own, ...start, output_dir: join(byHand, "out", stages[i]!) })));
  }
  assert.deepEqual(trace(events), traces);
  assert.deepEqual(weightsOf(folder), weightsOf(byHand));
  assert.equal(new Set(weightsOf(folder)).size, 3);

  const { state, stage, objective, step } = (await readRun(join(folder, "out")))!;
  assert.deepEqual(
    { state, stage, objective, step },
    { state: "done", stage: { name: "3-sft", number: 3, of: 3 }, objective: "sft", step: 3 },
  );
  const { stages: recorded } = recordOf(folder);
  assert.deepEqual(
    recorded.map(({ name, state, weights }: { name: string; state: string; weights: object }) => [name, state, weights]),
    stages.map((name, i) => [name, "done", { "adapter_model.safetensors": weightsOf(folder)[i] }]),
  );
  await assert.rejects(runAll(recipe), /holds another pipeline \(1-pt, 2-sft, 3-sft\).*resume_from_checkpoint=true/);
  rmSync(byHand, { recursive: true });
});

test("full fine-tuning hands over model folders, a checked recipe trains the same, and the last stage's results are the pipeline's", async () => {
  const folder = makeFolder();
  const full = { finetuning_type: "full", lora_dropout: undefined, stages: ["sft", { stage: "sft", seed: 7 }] };
  const results = await train(pipelineRecipe(folder, full));
  assert.equal(results.train_loss, JSON.parse(readFileSync(join(folder, "out/2-sft/all_results.json"), "utf8")).train_loss);
  const again = makeFolder();
  const { recipe } = checkRecipe(pipelineRecipe(again, full));
  await train(recipe);
  const weights = (where: string) => ["1-sft", "2-sft"].map((stage) => hashOf(join(where, "out", stage, "model.safetensors")));
  assert.deepEqual(weights(again), weights(folder));
  const alone = await collect(
    tinyRecipe(folder, {
      ...short,
      ...full,
      stages: undefined,
      seed: 7,
      model_name_or_path: join(folder, "out/1-sft"),
      output_dir: join(folder, "by-hand"),
    }),
  );
  assert.equal(hashOf(join(folder, "by-hand/model.safetensors")), weights(folder)[1]);
  assert.ok(trace(alone).length > 0);
});

test("stopped inside any stage, or between stages, a pipeline goes on as if nothing had happened, bit by bit", async () => {
  const whole = makeFolder();
  const expected = trace(await runAll(pipelineRecipe(whole)));
  assert.equal(expected.length, 9);
  for (let stopAfter = 1; stopAfter < 9; stopAfter++) {
    const folder = makeFolder();
    const stop = new AbortController();
    let steps = 0;
    const first: RecordedEvent[] = [];
    try {
      const onEvent = (event: RecordedEvent) => {
        first.push(event);
        if (event.type === "step" && ++steps === stopAfter) stop.abort();
      };
      const events = await runAll(pipelineRecipe(folder), onEvent, stop.signal);
      assert.ok(events.at(-1)!.type === "end");
    } catch (error) {
      assert.ok(error instanceof InterruptedError && stopAfter % 3 === 0, "between stages nothing is there to save");
    }
    const status = (await readRun(join(folder, "out")))!;
    assert.deepEqual([status.state, status.stage!.number], ["interrupted", Math.floor(stopAfter / 3) + 1]);
    const rest = await runAll(pipelineRecipe(folder, { resume_from_checkpoint: true }));
    assert.deepEqual([...trace(first), ...trace(rest)], expected, `stopped after step ${stopAfter}`);
    assert.deepEqual(weightsOf(folder), weightsOf(whole), `stopped after step ${stopAfter}`);
    const done = Math.floor(stopAfter / 3);
    assert.deepEqual(
      rest.filter((event) => event.type === "stage").map(({ isDone }) => isDone),
      stages.map((_, i) => i < done),
    );
    rmSync(folder, { recursive: true });
  }
});

test("killed at any moment, a pipeline goes on and makes the same", { timeout: 240_000 }, async () => {
  const whole = makeFolder();
  const settings = { save_strategy: "steps", save_steps: 1, max_steps: 4, plot_loss: true };
  await runAll(pipelineRecipe(whole, settings));
  const folder = makeFolder();
  const recipe = pipelineRecipe(folder, { ...settings, resume_from_checkpoint: true });
  const index = new URL("../src/index.js", import.meta.url).href;
  const script = `import { trainEvents } from ${JSON.stringify(index)};
    for await (const event of trainEvents(${JSON.stringify(recipe)})) console.log(event.type);`;
  let seen = "";
  for (let kill = 3; ; kill += 5) {
    const child = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
    let lines = 0;
    child.stdout.on("data", (text) => {
      seen += text;
      lines += String(text).split("\n").length - 1;
      if (lines >= kill) child.kill("SIGKILL");
    });
    const [code, signal] = await new Promise<[number | null, string | null]>((resolve) =>
      child.on("exit", (...how) => resolve(how)),
    );
    if (code === 0) break;
    assert.equal(signal, "SIGKILL");
  }
  assert.deepEqual(weightsOf(folder), weightsOf(whole));
  assert.ok(seen.includes("step"));
  const traceIn = (where: string) =>
    stages.flatMap((stage) => {
      const events = readFileSync(join(where, "out", stage, "events.jsonl"), "utf8")
        .trim()
        .split("\n");
      return trace(events.map((line) => JSON.parse(line)));
    });
  assert.deepEqual(traceIn(folder), traceIn(whole));
});

test("killed between a stage's end and its record, after its record, or with the next one begun, a pipeline goes on", async () => {
  const whole = makeFolder();
  await runAll(pipelineRecipe(whole));
  const moments: ((record: { stages: Record<string, unknown>[] }) => void)[] = [
    ({ stages: [, second, third] }) => {
      Object.assign(second!, { state: "begun", weights: null });
      Object.assign(third!, { state: "waiting", begunAt: null, weights: null });
    },
    ({ stages: [, , third] }) => Object.assign(third!, { state: "waiting", begunAt: null, weights: null }),
    ({ stages: [, , third] }) => Object.assign(third!, { state: "begun", begunAt: new Date().toISOString(), weights: null }),
  ];
  for (const change of moments) {
    const folder = makeFolder();
    await runAll(pipelineRecipe(folder));
    const record = recordOf(folder);
    change(record);
    writeFileSync(join(folder, "out/pipeline.json"), JSON.stringify(record));
    rmSync(join(folder, "out/3-sft"), { recursive: true });
    const events = await runAll(pipelineRecipe(folder, { resume_from_checkpoint: true }));
    assert.equal(trace(events).length, 3, "the last stage alone trains");
    assert.deepEqual(weightsOf(folder), weightsOf(whole));
    assert.ok(recordOf(folder).stages.every(({ state }: { state: string }) => state === "done"));
    rmSync(folder, { recursive: true });
  }
});

test("a pipeline that is done has its results at once; other settings of a stage that is done are told, other weights refused", async () => {
  const folder = makeFolder();
  const first = await train(pipelineRecipe(folder));
  const resume = { resume_from_checkpoint: true };
  const { machine: _, ...results } = first;
  const { machine: __, ...again } = await train(pipelineRecipe(folder, resume));
  assert.deepEqual(again, results);
  const changed = await runAll(pipelineRecipe(folder, { ...resume, adam_beta1: 0.8 }));
  const warnings = changed.flatMap((event) => (event.type === "notice" ? [`${event.level} ${event.message}`] : []));
  assert.deepEqual(
    warnings,
    stages.map(
      (name) => `warning stage ${name} is done, and stays as it was trained, with another adam_beta1 than the recipe has now`,
    ),
  );
  const victim = join(folder, "out/1-pt/adapter_model.safetensors");
  const bytes = readFileSync(victim);
  bytes[bytes.length - 5]! ^= 1;
  writeFileSync(victim, bytes);
  await assert.rejects(
    runAll(pipelineRecipe(folder, resume)),
    /1-pt.adapter_model\.safetensors: is not what stage 1-pt saved.*overwrite_output_dir=true/s,
  );
  rmSync(victim);
  await assert.rejects(runAll(pipelineRecipe(folder, resume)), /is gone, what stage 1-pt saved|is gone/);
  await runAll(pipelineRecipe(folder, { overwrite_output_dir: true }));
  assert.ok(existsSync(victim));
});

test("a folder with another run, or with stages that the pipeline did not begin, is left as it is", async () => {
  const folder = makeFolder();
  await collect(tinyRecipe(folder, short));
  await assert.rejects(runAll(pipelineRecipe(folder)), /holds another run/);
  const before = hashOf(join(folder, "out/adapter_model.safetensors"));
  const late = pipelineRecipe(folder, { overwrite_output_dir: true, lora_target: "nothing" });
  await assert.rejects(runAll(late), /no Linear layer/);
  assert.equal(hashOf(join(folder, "out/adapter_model.safetensors")), before, "a pipeline that cannot start replaces nothing");
  await runAll(pipelineRecipe(folder, { overwrite_output_dir: true }));
  assert.ok(!existsSync(join(folder, "out/adapter_model.safetensors")), "an old adapter would be taken for the pipeline's");
  await assert.rejects(collect(tinyRecipe(folder, short)), /out holds another run \(pipeline\.json\)/);
  await collect(tinyRecipe(folder, { ...short, overwrite_output_dir: true }));
  assert.ok(!existsSync(join(folder, "out/pipeline.json")));

  const other = makeFolder();
  await collect(tinyRecipe(other, { ...short, output_dir: join(other, "out/3-sft") }));
  for (const resume_from_checkpoint of [false, true]) {
    const steps: RecordedEvent[] = [];
    await assert.rejects(
      runAll(pipelineRecipe(other, { resume_from_checkpoint }), (event) => event.type === "step" && steps.push(event)),
      /3-sft holds another run/,
    );
    assert.deepEqual(steps, [], "it is told before the first stage trains");
  }
});

test("what would end a later stage ends the pipeline before its first, with the stage's name, and leaves no folder of a stage", async () => {
  for (const [late, message] of [
    [{ stage: "sft", dataset: "nowhere.jsonl" }, /^stage 2-sft: .*nowhere\.jsonl/],
    [{ stage: "rm" }, /^stage 2-rm: .*rows\.jsonl/],
    [{ stage: "sft", val_size: 24 }, /^stage 2-sft: .*val_size/],
    [{ stage: "sft", finetuning_type: "qlora", lora_target: "nothing" }, /^stage 2-sft: .*no Linear layer is named "nothing"/],
  ] as const) {
    const folder = makeFolder();
    const seen: RecordedEvent[] = [];
    await assert.rejects(
      runAll(pipelineRecipe(folder, { stages: ["sft", late] }), (event) => seen.push(event)),
      (error) => error instanceof AttuneError && message.test(error.message),
    );
    assert.deepEqual(seen, []);
    assert.ok(!existsSync(join(folder, "out/1-sft")));
    await runAll(pipelineRecipe(folder, { stages: ["sft", "sft"] }));
  }
});

test("attune data preview shows the data of a stage", async () => {
  const folder = makeFolder();
  const file = join(folder, "pipeline.yaml");
  writeFileSync(file, stringify(JSON.parse(JSON.stringify(pipelineRecipe(folder)))));
  const [first, second, byNumber, none] = await Promise.all([
    attune("data", "preview", file),
    attune("data", "preview", file, "--stage", "sft"),
    attune("data", "preview", file, "--stage", "2-sft"),
    attune("data", "preview", file, "--stage", "ppo"),
  ]);
  assert.match(first.out, /old owl sits on the roof/);
  assert.match(second.out, /Where is the cat/);
  assert.equal(byNumber.out, second.out);
  assert.match(none.err, /--stage: .*pipeline\.yaml has no stage "ppo"; there are 1-pt, 2-sft, 3-sft/);
});

test("two processes do not run the same pipeline at once", async () => {
  const folder = makeFolder();
  const first = trainEvents(pipelineRecipe(folder));
  await first.next();
  await assert.rejects(
    runAll(pipelineRecipe(folder, { resume_from_checkpoint: true })),
    new RegExp(`in use by process ${process.pid}`),
  );
  await first.return(undefined);
});

async function attune(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const written = { out: "", err: "" };
  const stream = (name: "out" | "err") => ({
    isTTY: false,
    columns: 100,
    write(text: string) {
      written[name] += text;
      return true;
    },
  });
  const io = { stdin: Readable.from(["Where is the owl?\n"]), stdout: stream("out"), stderr: stream("err"), env: {} };
  const code = await main(args, parts, io as unknown as Io);
  return { code, ...written };
}

test("attune train shows the stages; chat, export and a folder's name lead to the last policy", async () => {
  const folder = makeFolder();
  const file = join(folder, "pipeline.yaml");
  writeFileSync(
    file,
    stringify(JSON.parse(JSON.stringify(pipelineRecipe(folder, { stages: ["sft", { stage: "sft", seed: 7 }] })))),
  );
  const early = await attune("chat", file);
  assert.equal(early.code, 2);
  assert.match(early.err, /its stages have not begun in .*out: attune train/);
  const ran = await attune("train", file);
  assert.equal(ran.code, 0, ran.err);
  assert.match(
    ran.out,
    /Stage 1 of 2: sft[\s\S]*Done after[\s\S]*Adapter +\S*1-sft\n[\s\S]*Stage 2 of 2: sft[\s\S]*Adapter +\S*2-sft\n[\s\S]*Next\n.*chat --model \S+ --adapter \S*2-sft\n$/,
  );
  assert.equal(ran.out.match(/Next\n/g)!.length, 1);

  const said = await attune("chat", join(folder, "out/2-sft"), "temperature=0");
  assert.equal(said.code, 0, said.err);
  for (const where of [file, join(folder, "out"), join(folder, "out/recipe.yaml")])
    assert.deepEqual([where, (await attune("chat", where, "temperature=0")).out], [where, said.out]);
  const out = join(folder, "exported");
  const exported = await attune("export", file, "--to", "hf", "--out", out, "--check-rows", "0");
  assert.equal(exported.code, 0, exported.err);
  const ask = async (options: Parameters<typeof Chat.open>[0]) => {
    const chat = await Chat.open({ ...options, compute: "f32" });
    const answers = await chat.answerAll([[{ role: "user", content: "Where is the owl?" }]], { temperature: 0, maxNewTokens: 8 });
    chat.close();
    return answers;
  };
  assert.deepEqual(await ask({ model: out }), await ask({ model: join(tinyLlama, "tied"), adapter: join(folder, "out/2-sft") }));

  const record = recordOf(folder);
  Object.assign(record.stages[1], { state: "begun" });
  writeFileSync(join(folder, "out/pipeline.json"), JSON.stringify(record));
  const unfinished = await attune("chat", file);
  assert.match(
    unfinished.err,
    /its stage 2-sft is not done: attune train .*resume_from_checkpoint=true goes on; what the stages before have made is in .*1-sft/,
  );
  const resumed = await attune("train", file, "resume_from_checkpoint=true");
  assert.match(resumed.out, /Stage 1 of 2: sft\n {2}done before, in .*1-sft/);
});

/** Pairs whose better answer is the short one. */
function writePairs(folder: string): string {
  const path = join(folder, "pairs.jsonl");
  const rows = Array.from({ length: 16 }, (_, i) => ({
    prompt: `Where is the ${"very ".repeat(i % 5)}old owl?`,
    chosen: `on the roof ${i}`,
    rejected: `I cannot say where it is ${i}`,
  }));
  writeFileSync(path, rows.map((row) => JSON.stringify(row)).join("\n"));
  return path;
}

test("a reward model goes on from the policy's adapter, resumes bit by bit, and is no policy itself", async () => {
  const recipeIn = (folder: string, more: object = {}) =>
    pipelineRecipe(folder, { stages: ["sft", { stage: "rm", dataset: writePairs(folder), val_size: 4 }, "sft"], ...more });
  const whole = makeFolder();
  const expected = trace(await runAll(recipeIn(whole)));
  const folder = makeFolder();
  const stop = new AbortController();
  const first = await runAll(
    recipeIn(folder),
    (event) => event.type === "step" && event.stage === "2-rm" && stop.abort(),
    stop.signal,
  );
  const rest = await runAll(recipeIn(folder, { resume_from_checkpoint: true }));
  assert.deepEqual([...trace(first), ...trace(rest)], expected);
  for (const path of [
    "2-rm/adapter_model.safetensors",
    "2-rm/value_head.safetensors",
    "2-rm/reward_gate.json",
    "3-sft/adapter_model.safetensors",
  ])
    assert.equal(hashOf(join(folder, "out", path)), hashOf(join(whole, "out", path)), path);
  assert.deepEqual(
    recordOf(folder).stages.map(({ isPolicy }: { isPolicy: boolean }) => isPolicy),
    [true, false, true],
  );
  assert.match(readFileSync(join(folder, "out/3-sft/recipe.yaml"), "utf8"), /adapter_name_or_path: .*1-sft\n/);
});

for (const [method, own] of [
  ["lora", { lora_dropout: 0 }],
  ["full", { lora_dropout: undefined }],
  ["prefix-tuning", { lora_dropout: undefined, num_virtual_tokens: 3 }],
] as const)
  test(`${method}: dpo begins from the sft before it, and is compared with exactly that`, async () => {
    const folder = makeFolder();
    const events = await runAll(
      pipelineRecipe(folder, { finetuning_type: method, ...own, stages: ["sft", { stage: "dpo", dataset: writePairs(folder) }] }),
    );
    const losses = events.flatMap((event) => (event.type === "step" && event.stage === "2-dpo" ? [event.loss] : []));
    assert.ok(Math.abs(losses[0]! - Math.LN2) < 1e-6, `the first loss is ${losses[0]}`);
    assert.notEqual(losses.at(-1), losses[0]);
    const result = method === "full" ? "model.safetensors" : "adapter_model.safetensors";
    assert.notEqual(hashOf(join(folder, "out/1-sft", result)), hashOf(join(folder, "out/2-dpo", result)));
  });

test("sft, rm, ppo: the policy learns from what the judge says, stopped inside any stage and resumed bit by bit", async () => {
  const recipeIn = (folder: string, more: object = {}) =>
    pipelineRecipe(folder, {
      stages: [
        "sft",
        { stage: "rm", dataset: writePairs(folder), val_size: 4 },
        {
          ...{
            stage: "ppo",
            dataset: writePairs(folder),
            ignore_reward_gate: true,
            max_new_tokens: 6,
            ppo_epochs: 2,
            max_steps: 8,
          },
          ...{ per_device_train_batch_size: 2, gradient_accumulation_steps: 1, val_size: 2, eval_steps: 4 },
        },
      ],
      ...more,
    });
  const whole = makeFolder();
  const events = await runAll(recipeIn(whole));
  const expected = trace(events);
  const judged = events.flatMap((event) => (event.type === "step" && event.stage === "3-ppo" ? [event.metrics!.reward] : []));
  assert.equal(judged.length, 8);
  assert.ok(judged.every((reward) => typeof reward === "number"));
  assert.match(readFileSync(join(whole, "out/3-ppo/recipe.yaml"), "utf8"), /reward_model: .*2-rm\n/);
  assert.ok(existsSync(join(whole, "out/3-ppo/value_head.safetensors")));
  for (const [stage, step] of [
    ["2-rm", 2],
    ["3-ppo", 1],
    ["3-ppo", 4],
    ["3-ppo", 5],
  ] as const) {
    const folder = makeFolder();
    const stop = new AbortController();
    const isThere = (event: RecordedEvent) => event.type === "step" && event.stage === stage && event.step === step;
    const first = await runAll(recipeIn(folder), (event) => isThere(event) && stop.abort(), stop.signal);
    const rest = await runAll(recipeIn(folder, { resume_from_checkpoint: true }));
    assert.deepEqual([...trace(first), ...trace(rest)], expected, `stopped in ${stage}, after step ${step}`);
    for (const name of ["adapter_model.safetensors", "value_head.safetensors"])
      assert.equal(hashOf(join(folder, "out/3-ppo", name)), hashOf(join(whole, "out/3-ppo", name)), name);
    rmSync(folder, { recursive: true });
  }
});

test("a judge that has learned nothing ends the pipeline where the policy would learn from it", async () => {
  const folder = makeFolder();
  const recipe = pipelineRecipe(folder, {
    stages: [
      "sft",
      { stage: "rm", dataset: writePairs(folder), val_size: 4 },
      { stage: "ppo", dataset: writePairs(folder), max_new_tokens: 6 },
    ],
  });
  await assert.rejects(runAll(recipe), /2-rm.*(gate|ignore_reward_gate)|ignore_reward_gate/s);
  const { state, stage } = (await readRun(join(folder, "out")))!;
  assert.deepEqual([state, stage!.name], ["failed", "3-ppo"]);
});
