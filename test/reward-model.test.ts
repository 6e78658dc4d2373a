/** A reward model as a reward: the score of an answer is the same in evaluation, beside a policy and alone, whoever wrote the files. */
import assert from "node:assert/strict";
import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { Rng } from "../src/core/rng.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import { openSafetensors, readEntry, type TensorSource, toTensorEntry, writeSafetensors } from "../src/io/safetensors.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { loadModel } from "../src/models/load.js";
import type { RewardSample } from "../src/rewards/reward.js";
import { openScorer, rewardModel, rewardModelItem, scoreAnswers } from "../src/rewards/reward-model.js";
import { RewardScorer, type ScoredRow } from "../src/rewards/scorer.js";
import type { EvalEvent } from "../src/runs/events.js";
import { loadTokenizer } from "../src/text/load-tokenizer.js";
import { type ChatFormat, renderConversation } from "../src/text/supervised.js";
import { chooseTemplate } from "../src/text/templates.js";
import { tuners } from "../src/tuners/index.js";
import { SharedBase } from "../src/tuners/shared-base.js";
import { device } from "./support/gradient-check.js";
import { collect, tinyRecipe } from "./support/run.js";
import { tinyLlama } from "./support/tiny-llama.js";

const policy = join(tinyLlama, "tied");
const { signal } = new AbortController();

const pairs = Array.from({ length: 24 }, (_, i) => ({
  prompt: `question ${i % 6}`,
  chosen: `yes ${"very ".repeat(i % 3)}well!`,
  rejected: `no${" no".repeat(i % 4)}.`,
}));

/** Trains a reward model on the pairs; the last evaluation is of the same pairs. */
async function trained(t: TestContext, changes: Readonly<Record<string, unknown>> = {}) {
  const folder = temporaryFolder(t);
  const data = join(folder, "pairs.jsonl");
  writeFileSync(data, pairs.map((row) => JSON.stringify(row)).join("\n"));
  const recipe = tinyRecipe(folder, {
    ...{
      stage: "rm",
      dataset: [data],
      eval_dataset: [data],
      packing: false,
      per_device_train_batch_size: 8,
      lora_dropout: undefined,
    },
    ...{ gradient_accumulation_steps: 1, num_train_epochs: 3, learning_rate: 1e-2, warmup_steps: 0, ...changes },
  });
  const events = await collect(recipe);
  const { metrics } = events.filter((event): event is EvalEvent => event.type === "eval").at(-1)!;
  return { folder, out: join(folder, "out"), metrics: metrics as Record<string, number> };
}

async function chatOf(): Promise<ChatFormat> {
  const tokenizer = await loadTokenizer(await openModelFolder(policy));
  return { tokenizer, template: chooseTemplate(tokenizer, {}).template };
}

/** The answers of all pairs, chosen before rejected, as a policy would have given them. */
async function samples(): Promise<RewardSample[]> {
  const chat = await chatOf();
  return pairs.flatMap(({ prompt, chosen, rejected }, i) =>
    [chosen, rejected].map((answer): RewardSample => {
      const messages = [{ role: "user", content: prompt }] as const;
      const { ids, supervised } = renderConversation(chat, { messages: [...messages, { role: "assistant", content: answer }] });
      const from = supervised.indexOf(1);
      const to = supervised.lastIndexOf(1) + 1;
      return {
        messages,
        answer,
        prompt: ids.slice(0, from),
        answerIds: ids.slice(from, to),
        isFinished: true,
        columns: {},
        where: `row ${i}`,
      };
    }),
  );
}

const newBase = async () => new SharedBase(await loadModel(device, await openModelFolder(policy)));
const toolsOf = async (name = "rm") => ({ tokenizer: (await chatOf()).tokenizer, functions: {}, name });
const openReward = async (settings: Readonly<Record<string, unknown>>) =>
  rewardModel.open(rewardModel.config.parse(settings) as never, await toolsOf());

function assertScores(actual: readonly (number | null)[], expected: readonly number[], allowed: number): void {
  assert.equal(actual.length, expected.length);
  for (const [i, value] of expected.entries())
    assert.ok(Math.abs(actual[i]! - value) <= allowed, `${i}: ${actual[i]}, expected ${value}`);
}

/** What the last evaluation of a run said, found again in scores. */
function assertEvaluated(
  scores: readonly (number | null)[],
  { mean_reward, min_reward, max_reward, accuracy, margin }: Record<string, number>,
): void {
  const known = scores as number[];
  const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
  const margins = pairs.map((_, i) => known[2 * i]! - known[2 * i + 1]!);
  for (const [found, said] of [
    [mean, mean_reward],
    [Math.min(...known), min_reward],
    [Math.max(...known), max_reward],
    [margins.filter((margin) => margin > 0).length / margins.length, accuracy],
    [margins.reduce((sum, value) => sum + value, 0) / margins.length, margin],
  ] as const)
    assert.ok(Math.abs(found - said!) < 2e-5, `${found}, the evaluation said ${said}`);
}

for (const { name } of tuners)
  test(`${name}: evaluation, a policy's base and the model alone give an answer one score`, async (t) => {
    const { out, metrics } = await trained(t, { finetuning_type: name });
    const base = await newBase();
    // An adapter that was trained on a quantized base is exact on such a one only.
    const onOwn = { model: policy, kind: "full", adapter: out, quantization_bit: 4 };
    const score = await openReward(name === "qlora" ? onOwn : { model: out });
    const beside = await score(await samples(), { base, signal });
    assertEvaluated(beside, metrics);
    const before = base.names.length;
    assert.deepEqual(await score(await samples(), { base, signal }), beside);
    assert.equal(base.names.length, before, "it is loaded once");

    if (name !== "qlora" && name !== "full" && name !== "freeze") {
      const alone = await openScorer(device, await openModelFolder(policy), { adapter: out });
      const rows = (await samples()).map(({ prompt, answerIds }) => ({ prompt, answer: answerIds }));
      assertScores(await scoreAnswers(alone, rows, signal, (_, what) => new Error(what)), beside as number[], 0);
      const single: number[] = [];
      for (const row of rows) single.push(...(await scoreAnswers(alone, [row], signal, (_, what) => new Error(what))));
      assertScores(single, beside as number[], 2e-5);
      alone.base.dispose();
    }
    base.dispose();
  });

test("a file of pairs or conversations is scored at the same token as in training", async (t) => {
  const { folder, out, metrics } = await trained(t);
  const data = join(folder, "pairs.jsonl");
  const scorer = await RewardScorer.open({ model: policy, adapter: out, compute: "f32" });
  const found: (number | undefined)[] = [];
  for await (const { scores } of scorer.score([data])) found.push(scores.chosen, scores.rejected);
  assertEvaluated(found as number[], metrics);
  const answers = join(folder, "answers.jsonl");
  const messages = ({ prompt, chosen }: (typeof pairs)[number]) => [
    { role: "user", content: prompt },
    { role: "assistant", content: chosen },
  ];
  writeFileSync(answers, pairs.map((row) => JSON.stringify({ messages: messages(row) })).join("\n"));
  const singles: ScoredRow[] = [];
  for await (const row of scorer.score([answers])) singles.push(row);
  assert.match(singles[3]!.where, /answers\.jsonl:4$/);
  assertScores(
    singles.map(({ scores }) => scores.score!),
    found.filter((_, i) => i % 2 === 0) as number[],
    2e-5,
  );
  scorer.close();
  await assert.rejects(RewardScorer.open({ model: policy }), { code: "MODEL", message: /is no reward model/ });
});

/** The same reward model as LLaMA-Factory leaves it: the adapter without the head, and the head with a bias in a file of its own. */
async function asLlamaFactory(t: TestContext, out: string, bias: number): Promise<string> {
  const folder = temporaryFolder(t);
  cpSync(out, folder, { recursive: true });
  for (const name of ["value_head.safetensors", "labels.json", "adapter_model.safetensors"]) rmSync(join(folder, name));
  const config = JSON.parse(readFileSync(join(folder, "adapter_config.json"), "utf8")) as Record<string, unknown>;
  writeFileSync(
    join(folder, "adapter_config.json"),
    JSON.stringify({ ...config, task_type: "CAUSAL_LM", modules_to_save: null }),
  );
  const { tensors } = await openSafetensors(join(out, "adapter_model.safetensors"));
  const sources: (TensorSource & { isHead: boolean })[] = [];
  for (const stored of tensors.values()) {
    const data = await readEntry(stored);
    sources.push({
      name: stored.name,
      dtype: "f32",
      shape: toTensorEntry(stored).shape,
      data: () => data,
      isHead: /score\.weight$/.test(stored.name),
    });
  }
  await writeSafetensors(
    join(folder, "adapter_model.safetensors"),
    sources.filter(({ isHead }) => !isHead),
  );
  const head = sources.find(({ isHead }) => isHead)!;
  await writeSafetensors(join(folder, "value_head.safetensors"), [
    { ...head, name: "v_head.summary.weight" },
    { name: "v_head.summary.bias", dtype: "f32", shape: [1], data: () => new Uint8Array(Float32Array.of(bias).buffer) },
  ]);
  return folder;
}

test("LLaMA-Factory's adapter with value_head.safetensors is read, with its bias; training goes on from it without", async (t) => {
  const { out, metrics } = await trained(t);
  const theirs = await asLlamaFactory(t, out, 0.75);
  const base = await newBase();
  const own = await (await openReward({ model: out }))(await samples(), { base, signal });
  assertEvaluated(own, metrics);
  const second = await newBase();
  const read = await (await openReward({ model: theirs }))(await samples(), { base: second, signal });
  assertScores(
    read,
    (own as number[]).map((score) => score + 0.75),
    1e-6,
  );
  const alone = await (await openReward({ model: policy, kind: "full", adapter: theirs }))(await samples(), { base, signal });
  assertScores(alone, read as number[], 0);
  base.dispose();
  second.dispose();

  const next = await trained(t, { adapter_name_or_path: theirs, learning_rate: 1e-12, num_train_epochs: 1 });
  for (const key of ["accuracy", "margin", "mean_reward"]) assert.ok(Math.abs(next.metrics[key]! - metrics[key]!) < 1e-5, key);
});

test("a reward model begins from an adapter without a head, as after sft, with a head by chance", async (t) => {
  const folder = temporaryFolder(t);
  await collect(tinyRecipe(folder));
  const { metrics } = await trained(t, { adapter_name_or_path: join(folder, "out") });
  assert.ok(metrics.accuracy! > 0.5);
});

test("a reward model over an SFT adapter is right on a base alone, and on one with the same adapter merged; on any other it is refused", async (t) => {
  const folder = temporaryFolder(t);
  await collect(tinyRecipe(folder));
  const { out, metrics } = await trained(t, { adapter_name_or_path: join(folder, "out"), create_new_adapter: true });
  const base = await newBase();
  const score = await openReward({ model: out });
  assertEvaluated(await score(await samples(), { base, signal }), metrics);
  base.dispose();

  const { assemble } = await import("../src/train/assemble.js");
  const { openBaseAdapters } = await import("../src/tuners/tuned-files.js");
  const { partsOf } = await import("./support/parts.js");
  const lora = tuners.find(({ name }) => name === "lora")!;
  const files = await openModelFolder(policy);
  const start = { weightsFrom: null, start: { rng: new Rng(0), encode: () => Int32Array.of(1) }, hasNewHead: false };
  const parts = partsOf(files, lora.bind(lora.config.parse({})));
  const merged = await assemble(device, { ...parts, baseAdapters: await openBaseAdapters([join(folder, "out")], tuners) }, start);
  assertEvaluated(await score(await samples(), { base: merged.base, signal }), metrics);
  const plain = await trained(t);
  const other = await openReward({ model: plain.out });
  await assert.rejects(other(await samples(), { base: merged.base, signal }), {
    code: "CONFIG",
    message: /other adapters were merged into the base/,
  });
  merged.dispose();
});

test("what cannot be a reward model is refused by name", async (t) => {
  const { out, folder } = await trained(t);
  await assert.rejects(openReward({ model: policy, kind: "lora" }), {
    code: "CONFIG",
    message: /holds no adapter .* reward_model_type: full/,
  });
  await assert.rejects(openReward({ model: out, kind: "full" }), /holds an adapter: reward_model_type: lora/);
  await assert.rejects(
    openReward({ model: out, adapter: out }),
    /reward_model_adapters and reward_model_quantization_bit are for a model of its own/,
  );
  const base = await newBase();
  const headless = await openReward({ model: policy });
  await assert.rejects(headless(await samples(), { base, signal }), {
    code: "MODEL",
    message: /is no reward model: it has no head of one output/,
  });

  const foreign = join(folder, "foreign");
  cpSync(out, foreign, { recursive: true });
  const path = join(foreign, "tokenizer.json");
  writeFileSync(path, readFileSync(path, "utf8").replace('"a"', '"\\u00fe\\u00fe"'));
  await assert.rejects(openReward({ model: foreign }), {
    code: "CONFIG",
    message: /is a reward model of another tokenizer: token \d+ is "a" for the model that trains, and /,
  });

  const score = await openReward({ model: out });
  const [sample] = (await samples()) as [RewardSample];
  await assert.rejects(score([{ ...sample, answerIds: new Int32Array(5000).fill(70) }], { base, signal }), {
    code: "REWARD",
    message: /^row 0: the reward rm: prompt and answer have \d+ tokens, and the reward model takes \d+/,
  });
  base.dispose();
  const inPlace = await newBase();
  const full = tuners.find(({ name }) => name === "full")!;
  inPlace.add("default", full.bind({}), { rng: new Rng(0) });
  await assert.rejects((await openReward({ model: out }))([sample], { base: inPlace, signal }), {
    code: "CONFIG",
    message: /keepsBase/,
  });
  inPlace.dispose();
});

test("LLaMA-Factory's keys become an item of rewards", () => {
  const none = {
    reward_model: null,
    reward_model_type: null,
    reward_model_adapters: null,
    reward_model_quantization_bit: null,
  } as const;
  assert.equal(rewardModelItem(none), null);
  const item = rewardModelItem({ ...none, reward_model: "runs/rm", reward_model_type: "lora" })!;
  assert.deepEqual(item, {
    type: "reward_model",
    name: "reward_model",
    weight: 1,
    model: "runs/rm",
    kind: "lora",
    adapter: null,
    quantization_bit: null,
  });
  assert.equal(rewardModelItem({ ...none, reward_model: "http://localhost:1", reward_model_type: "api" })!.type, "api");
  assert.throws(() => rewardModelItem({ ...none, reward_model: "runs/rm", reward_model_type: "api" }), {
    code: "CONFIG",
    message: /^reward_model: /,
  });
});

test("stages that learn from rewards ask the gate of a reward model, and train on one that has not passed only if told to", async (t) => {
  const { folder, out } = await trained(t);
  const prompts = join(folder, "prompts.jsonl");
  writeFileSync(prompts, pairs.map(({ prompt }) => JSON.stringify({ prompt })).join("\n"));
  const recipe = (changes: Readonly<Record<string, unknown>> = {}) =>
    tinyRecipe(folder, {
      ...{ stage: "grpo", dataset: [prompts], packing: false, lora_dropout: undefined, max_new_tokens: 4, num_generations: 2 },
      ...{ max_steps: 2, output_dir: join(folder, "policy"), reward_model: out, reward_model_type: "lora", ...changes },
    });
  await assert.rejects(collect(recipe()), {
    code: "CONFIG",
    message: /every held-out pair trains as well.*ignore_reward_gate: true/,
  });
  rmSync(join(out, "reward_gate.json"));
  await assert.rejects(collect(recipe()), { code: "CONFIG", message: /nobody has measured this reward model/ });
  const events = await collect(recipe({ ignore_reward_gate: true }));
  const steps = events.filter(({ type }) => type === "step");
  assert.equal(steps.length, 2);
  assert.ok(events.some((event) => event.type === "notice" && /is trained on although it has not passed/.test(event.message)));
});
