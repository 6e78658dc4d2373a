/** Numbers that are not finite: wherever one comes from, the run ends at that step, names it, and nothing that holds one is saved or used. */
import assert from "node:assert/strict";
import { cpSync, existsSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import test, { describe } from "node:test";
import { Rng } from "../src/core/rng.js";
import type { Tensor } from "../src/core/tensor.js";
import { exportModel } from "../src/export/export.js";
import { AttuneError, Chat, type StartEvent } from "../src/index.js";
import { newestCompleteCheckpoint, publishFolder } from "../src/io/checkpoint.js";
import type { CausalLM } from "../src/models/causal-lm.js";
import { nextToken } from "../src/objectives/next-token.js";
import type { Task } from "../src/objectives/objective.js";
import type { Optimizer } from "../src/optim/optimizer.js";
import type { OptimizerName } from "../src/optim/optimizers.js";
import { checkFinite } from "../src/train/checkpoint.js";
import { noProgress, train } from "../src/train/loop.js";
import { StepPlan } from "../src/train/step-plan.js";
import { tuners } from "../src/tuners/index.js";
import { engine } from "./support/gradient-check.js";
import { poisonFile } from "./support/poison-file.js";
import { collect, makeFolder, tinyRecipe, trace } from "./support/run.js";
import { exampleOf, loadTinyLlama, reference, tinyLlama } from "./support/tiny-llama.js";
import { traineeOf } from "./support/trainee.js";

const rows = reference.sequences.map((sequence, i) => exampleOf(sequence, `row ${i}`));

interface Training {
  readonly model: CausalLM;
  readonly optimizer: Optimizer;
}

/** Trains four steps; `poison` does its work after the second. Returns the steps that were done, and the error. */
async function poisoned(method: string, settings: object, optim: OptimizerName, poison: (training: Training) => void) {
  const tuner = tuners.find(({ name }) => name === method)!;
  const { model } = await loadTinyLlama("tied");
  tuner.bind(tuner.config.parse(settings)).apply(model, new Rng(1));
  const trainee = traineeOf(model, { weightDecay: 0.01, optim });
  const { optimizer } = trainee;
  const progress = noProgress();
  const saved: number[] = [];
  try {
    for await (const event of train({
      ...{ trainee, task: nextToken as Task, trainRows: rows, evalRows: [], progress },
      plan: new StepPlan(() => [[0], [1], [0], [1]], { accumulationSteps: 1, epochs: 1, maxSteps: 0 }),
      settings: {
        ...{ learningRate: 1e-3, schedule: "constant", warmupSteps: 0, maxGradNorm: 0, seed: 1 },
        ...{ evalSteps: 0, saveSteps: 1, evalBatchSize: 1 },
      },
      save: async () => `${saved.push(progress.step)}`,
      signal: new AbortController().signal,
    }))
      if (event.type === "checkpoint" && event.step === 2) poison({ model, optimizer });
    return { saved, error: null };
  } catch (error) {
    return { saved, error: error as AttuneError };
  } finally {
    trainee.dispose();
    model.dispose();
  }
}

const broken = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];

function set({ device, id }: Tensor, place: number, value: number): void {
  device.kernels.write(id, 4 * place, Float32Array.of(value));
}

/**
 * A weight at random, or something that is kept of one, and a place in it: the first of a block, which is its absmax, of moments in 8 bits.
 */
function victim({ model, optimizer }: Training, what: string, rng: Rng): { name: string; tensor: Tensor; place: number } {
  const weights = [...model.trainableParameters()].map(
    ([name, { value }]) => [name, { tensor: value, isBlocks: false }] as const,
  );
  const all = what === "weight" ? weights : [...optimizer.kept()].filter(([name]) => name.endsWith(`.${what}`));
  const [name, { tensor, isBlocks }] = all[rng.below(all.length)]!;
  return { name, tensor, place: isBlocks ? 65 * rng.below(tensor.rows) : rng.below(tensor.size) };
}

const moments = ["m", "v"] as const;
const methods = [
  ["lora", {}, "adamw_torch", moments],
  ["lora", { use_dora: true }, "adamw_8bit", moments],
  ["full", {}, "adamw_torch", moments],
  ["full", {}, "adamw_8bit", moments],
  ["adapter", { scaling: "learned" }, "adamw_torch", moments],
  ["p-tuning", { encoder_reparameterization_type: "LSTM", encoder_hidden_size: 16 }, "adamw_torch", moments],
  ["prefix-tuning", {}, "adamw_torch", moments],
  ["full", {}, "adafactor", ["row", "column", "v"]],
  ["lora", {}, "lion_32bit", ["m"]],
  ["full", {}, "muon", ["momentum", ...moments]],
  ["lora", {}, "sgd", []],
] as const;

describe("a number that is not finite ends the run at the next step, whatever trains", () => {
  const rounds = process.env.ATTUNE_SOAK === "1" ? 40 : 2;
  for (const [method, settings, optim, kept] of methods)
    for (const what of ["weight", ...kept])
      test(`${method} ${JSON.stringify(settings)}, ${optim}: ${what}`, async () => {
        const rng = Rng.for(7, `${method}/${what}/${optim}`);
        for (let round = 0; round < rounds; round++)
          for (const value of broken) {
            let hit = "";
            const { saved, error } = await poisoned(method, settings, optim, (training) => {
              const { name, tensor, place } = victim(training, what, rng);
              set(tensor, place, value);
              hit = name;
            });
            const where = `${value} in ${hit}`;
            assert.ok(error instanceof AttuneError, `${where}: ${error}`);
            assert.equal(error.exitCode, 3, where);
            assert.match(error.message, /^step 3: the (loss|gradient|update)/, where);
            assert.deepEqual(saved, [1, 2], where);
          }
      });

  /** The last norm makes of its input so much that the logits, or the gradients before it, are infinite. */
  const overflow = (weight: number) =>
    poisoned("lora", {}, "adamw_torch", ({ model }) => {
      const { value } = new Map(model.namedParameters()).get("model.norm.weight")!;
      for (let place = 0; place < value.size; place++) set(value, place, weight);
    });
  for (const [what, weight, message] of [
    ["a loss", 1e38, /^step 3: the loss is NaN on row 0\. The weights are as they were after step 2/],
    ["a gradient", 1e25, /^step 3: the gradient of all weights together is not finite/],
  ] as const)
    test(what, async () => {
      const { saved, error } = await overflow(weight);
      assert.match(error!.message, message);
      assert.equal(error!.exitCode, 3);
      assert.deepEqual(saved, [1, 2]);
    });

  test("a weight of the base, which is named", async () => {
    const { error } = await poisoned("lora", {}, "adamw_torch", ({ model }) => {
      const [, norm] = [...model.namedParameters()].find(([name]) => name === "model.layers.1.input_layernorm.weight")!;
      set(norm.value, 3, Number.NaN);
    });
    assert.match(error!.message, /^step 3: the loss is NaN, for the weight model\.layers\.1\.input_layernorm\.weight/);
  });
});

const diverges = (error: unknown) => error instanceof AttuneError && error.exitCode === 3;

describe("settings that leave no finite weight", () => {
  const cases: Record<string, Record<string, unknown>> = {
    "a huge rate": { learning_rate: 1e38 },
    "a huge rate, full": { learning_rate: 1e38, finetuning_type: "full", lora_dropout: undefined },
    "a huge rate, moments of 8 bits": {
      learning_rate: 1e38,
      finetuning_type: "full",
      lora_dropout: undefined,
      optim: "adamw_8bit",
    },
    "a rate that leaves finite weights of no use": { learning_rate: 1e30 },
    "a huge ratio": { learning_rate: 1e-3, loraplus_lr_ratio: 1e37 },
    "a huge alpha": { lora_alpha: 1e38, learning_rate: 1 },
  };
  for (const [name, changes] of Object.entries(cases))
    test(`${name}: the run ends as diverged after its only step, and leaves no result`, async () => {
      const folder = makeFolder();
      const before = engine.stats().liveBytes;
      const recipe = tinyRecipe(folder, { max_grad_norm: 0, warmup_steps: 0, max_steps: 1, ...changes });
      if (name === "a huge alpha") recipe.max_steps = 4; // its first step is no larger than another's
      await assert.rejects(collect(recipe), diverges);
      const left = readdirSync(join(folder, "out"));
      assert.ok(!left.some((file) => /safetensors|checkpoint|results/.test(file)), left.join());
      assert.equal(engine.stats().liveBytes, before);
    });

  test("a ratio that takes a rate out of f32, or whole weights at a step, is refused before the weights are read", async () => {
    const refused = (message: RegExp) => ({ code: "CONFIG", message });
    const recipe = (changes: object) => tinyRecipe(makeFolder(), { learning_rate: 10, loraplus_lr_ratio: 1e3, ...changes });
    await assert.rejects(collect(recipe({ loraplus_lr_ratio: 1e38 })), refused(/learns 1e\+38 times as fast, at 1e\+39/));
    await assert.rejects(collect(recipe({ weight_decay: 0.01 })), refused(/lora_B\.weight learns 1000 times as fast, at 10000/));
  });

  test("factors that are 0 or infinite in f32 are refused with the recipe", async () => {
    for (const [key, value] of Object.entries({ lora_alpha: 1e39, loraplus_lr_ratio: 1e-50, alpha_pattern: { q_proj: 1e39 } })) {
      const recipe = tinyRecipe(makeFolder(), { [key]: value });
      await assert.rejects(collect(recipe), { code: "CONFIG", message: new RegExp(`recipe: ${key}: `) });
    }
  });

  test("the checkpoint before it is good, and with a lower rate the run goes on from it", async () => {
    const folder = makeFolder();
    const recipe = {
      lr_scheduler_type: "constant_with_warmup",
      warmup_steps: 4,
      save_strategy: "steps",
      save_steps: 1,
      max_grad_norm: 0,
    };
    await assert.rejects(collect(tinyRecipe(folder, { ...recipe, learning_rate: 1e38 })), diverges);
    assert.equal((await newestCompleteCheckpoint(join(folder, "out")))!.step, 1);
    await checkFinite(join(folder, "out/checkpoint-1"), false);
    const events = await collect(tinyRecipe(folder, { ...recipe, learning_rate: 1e-3, resume_from_checkpoint: true }));
    assert.equal(events.find((event): event is StartEvent => event.type === "start")!.resumedFromStep, 1);
    assert.equal(events.at(-1)!.type, "end");
  });
});

/** Writes a checkpoint once more, whole and sealed, with a number in one of its files that is not finite. */
async function poisonCheckpoint(path: string, file: string, suffix: string, value: number): Promise<void> {
  const copy = `${path}.before`;
  renameSync(path, copy);
  await publishFolder(path, async (folder) => {
    cpSync(copy, folder, { recursive: true });
    rmSync(join(folder, ".complete"));
    await poisonFile(join(folder, file), suffix, value);
  });
  rmSync(copy, { recursive: true });
}

describe("a checkpoint that holds a number which is not finite is passed over", () => {
  const full = { finetuning_type: "full", lora_dropout: undefined };
  const virtual = { finetuning_type: "p-tuning", num_virtual_tokens: 3, encoder_hidden_size: 16, lora_dropout: undefined };
  const cases: [string, Record<string, unknown>, string, string][] = [
    ["the weights of an adapter", {}, "adapter_model.safetensors", "lora_A.weight"],
    ["a first moment", {}, "optimizer.safetensors", ".m"],
    ["a second moment", {}, "optimizer.safetensors", ".v"],
    ["the weights of a model", full, "model.safetensors", "norm.weight"],
    ["a moment in 8 bits", { ...full, optim: "adamw_8bit" }, "optimizer.safetensors", "embed_tokens.weight.v"],
    ["an encoder of virtual tokens", virtual, "training_weights.safetensors", "mlp_head.0.weight"],
  ];
  for (const [what, changes, file, suffix] of cases)
    test(`${what}: an older one is used, with a warning`, async () => {
      const folder = makeFolder();
      const recipe = { save_strategy: "steps", save_steps: 2, max_steps: 6, ...changes };
      const expected = trace(await collect(tinyRecipe(folder, recipe)));
      const path = (step: number) => join(folder, `out/checkpoint-${step}`);
      await poisonCheckpoint(path(4), file, suffix, Number.NaN);
      await assert.rejects(collect(tinyRecipe(folder, { ...recipe, resume_from_checkpoint: path(4) })), {
        code: "CHECKPOINT",
        message: new RegExp(`${file.replace(".", "\\.")}: .*${suffix.replaceAll(".", "\\.")} holds a number that is not finite`),
      });
      const events = await collect(tinyRecipe(folder, { ...recipe, resume_from_checkpoint: true }));
      const warnings = events.filter((event) => event.type === "notice" && event.level === "warning");
      assert.ok(warnings.some((event) => "message" in event && /checkpoint-4 is not used: .* not finite/.test(event.message)));
      assert.deepEqual(trace(events), expected.slice(2));

      await poisonCheckpoint(path(4), file, suffix, Number.POSITIVE_INFINITY);
      await poisonCheckpoint(path(2), file, suffix, Number.NEGATIVE_INFINITY);
      assert.deepEqual(trace(await collect(tinyRecipe(folder, { ...recipe, resume_from_checkpoint: true }))), expected);
    });
});

describe("an adapter that holds a number which is not finite is refused", () => {
  const virtual = { finetuning_type: "p-tuning", num_virtual_tokens: 3, encoder_hidden_size: 16 };
  const cases: [string, Record<string, unknown>, string, boolean][] = [
    ["lora", {}, "adapter_model.safetensors", true],
    ["p-tuning", virtual, "adapter_model.safetensors", true],
    ["p-tuning", virtual, "training_weights.safetensors", false],
    ["adapter", { finetuning_type: "adapter" }, "adapter.safetensors", true],
  ];
  for (const [method, changes, file, isUsed] of cases)
    test(`${method}, ${file}`, async () => {
      const folder = makeFolder();
      const recipe = { lora_dropout: undefined, max_steps: 1, ...changes };
      await collect(tinyRecipe(folder, recipe));
      const out = join(folder, "out");
      await poisonFile(join(out, file), "", Number.NaN);
      const refused = { code: "MODEL", message: /not a finite number/ };
      if (isUsed) await assert.rejects(Chat.open({ model: join(tinyLlama, "tied"), adapter: out }), refused);
      if (isUsed && file === "adapter_model.safetensors" && method === "p-tuning") return; // training goes on from the encoder
      const more = tinyRecipe(folder, { ...recipe, adapter_name_or_path: out, output_dir: join(folder, "more") });
      await assert.rejects(collect(more), refused);
      assert.ok(!existsSync(join(folder, "more", file)));
    });
});

describe("a model that holds a number which is not finite says so, whatever is done with it", () => {
  const broken = async (suffix: string, changes: Record<string, unknown> = {}) => {
    const folder = makeFolder();
    await collect(tinyRecipe(folder, { finetuning_type: "full", lora_dropout: undefined, max_steps: 1, ...changes }));
    await poisonFile(join(folder, "out/model.safetensors"), suffix, Number.NaN);
    return { folder, model: join(folder, "out") };
  };

  for (const temperature of [0, 1])
    test(`in a chat, at temperature ${temperature}`, async () => {
      const { model } = await broken("layers.1.mlp.up_proj.weight");
      const chat = await Chat.open({ model });
      const question = [[{ role: "user", content: "Where is the cat?" }]] as const;
      await assert.rejects(chat.answerAll(question, { maxNewTokens: 4, temperature }), {
        code: "DIVERGED",
        message: /logits are NaN/,
      });
      chat.close();
    });

  test("in training, where the weight is named", async () => {
    const { folder, model } = await broken("layers.1.mlp.up_proj.weight");
    const recipe = tinyRecipe(folder, { model_name_or_path: model, output_dir: join(folder, "more") });
    await assert.rejects(collect(recipe), {
      code: "DIVERGED",
      message: /the weight model\.layers\.1\.mlp\.up_proj.*not finite.*file is damaged/,
    });
  });

  for (const type of ["f32", "bf16", "q8_0", "q4_k_m"] as const)
    test(`in an export as ${type}, also in a row that no text asks for`, async () => {
      const { folder, model } = await broken("embed_tokens.weight");
      const out = join(folder, "exported");
      const exported = exportModel({ model, to: type === "bf16" ? "hf" : "gguf", type, out });
      await assert.rejects(exported, { code: "DIVERGED", message: /embed_tokens\.weight holds a number that is not finite/ });
      assert.ok(!existsSync(out));
    });
});
