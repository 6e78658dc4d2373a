/**
 * Objectives that attune does not have, written as its own would be: pairs of answers, losses that are pure functions of log-probabilities, the base
 * as reference, several terms. One file, and one line in the list; nothing else is told of them.
 */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { z } from "zod";
import { gatherRows } from "../src/core/ops/rows.js";
import { Rng } from "../src/core/rng.js";
import type { Tensor } from "../src/core/tensor.js";
import { loadRows } from "../src/data/dataset.js";
import type { Example, Row } from "../src/data/example.js";
import type { RowFormat } from "../src/data/row-format.js";
import { evaluate } from "../src/evaluate/evaluate.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { asCausalLM } from "../src/models/causal-lm.js";
import type { LanguageModel } from "../src/models/language-model.js";
import { objectives } from "../src/objectives/index.js";
import { type NextTokenBatch, nextToken } from "../src/objectives/next-token.js";
import { type Batch, defineObjective, type Objective, type Task } from "../src/objectives/objective.js";
import type { StepEvent } from "../src/runs/events.js";
import { assemble, type Trainee, trainedName } from "../src/train/assemble.js";
import { runStep } from "../src/train/step.js";
import { tuners } from "../src/tuners/index.js";
import { device, engine, randomValues } from "./support/gradient-check.js";
import { partsOf } from "./support/parts.js";
import { collect, tinyRecipe, trace } from "./support/run.js";
import { anyStep, gradientsOf } from "./support/step-gradients.js";
import { assertPeakOf } from "./support/step-peak.js";
import { tinyLlama } from "./support/tiny-llama.js";

interface Pair extends Row {
  readonly chosen: Example;
  readonly rejected: Example;
}

interface PairBatch extends NextTokenBatch {
  /** Of each supervised token: 2 · its pair, + 1 where the answer is the rejected one. */
  readonly answers: Int32Array;
  readonly pairs: number;
}

const pairs = {
  collate(rows: readonly Pair[]): PairBatch {
    const examples = rows.flatMap(({ chosen, rejected }) => [chosen, rejected]);
    const answers = examples.flatMap(({ supervised }, answer) =>
      [...supervised].filter((label) => label === 1).map(() => answer),
    );
    const counts = { preference: rows.length, nll: answers.filter((answer) => answer % 2 === 0).length };
    return { ...nextToken.collate(examples), answers: Int32Array.from(answers), pairs: rows.length, counts };
  },
  shorten(row: Pair, tokens: number): Pair {
    const half = (example: Example) => nextToken.shorten(example, Math.ceil(tokens / 2));
    return { ...row, chosen: half(row.chosen), rejected: half(row.rejected), tokens };
  },
};

function logProbsOf(model: LanguageModel, { input, rows, targets }: PairBatch): Tensor {
  return asCausalLM(model, "a preference").lm_head.logProbs(gatherRows(model.hidden(input), rows), targets);
}

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

/** Direct preference optimization: −log σ(β (log-ratio of the chosen answer − that of the rejected one)). Source: Rafailov et al. 2023, eq. 7. */
function dpoLoss(policy: Float32Array, reference: Float32Array, { answers, pairs }: PairBatch, beta: number) {
  const rewards = new Float64Array(2 * pairs);
  for (const [i, answer] of answers.entries()) rewards[answer]! += beta * (policy[i]! - reference[i]!);
  const margins = Array.from({ length: pairs }, (_, i) => rewards[2 * i]! - rewards[2 * i + 1]!);
  const mean = (values: readonly number[]) => ({ sum: values.reduce((a, b) => a + b, 0), count: pairs });
  return {
    sum: margins.reduce((sum, margin) => sum + Math.log1p(Math.exp(-margin)), 0),
    gradient: Float32Array.from(answers, (answer) => (answer % 2 === 0 ? -beta : beta) * sigmoid(-margins[answer >> 1]!)),
    metrics: {
      "rewards/accuracies": mean(margins.map((margin) => (margin > 0 ? 1 : 0))),
      "rewards/margins": mean(margins),
      "rewards/chosen": mean(margins.map((_, i) => rewards[2 * i]!)),
    },
  };
}

const dpoTask = (beta: number): Task<Pair, PairBatch> => ({
  ...pairs,
  usesBase: true,
  terms: (model, batch, base) => ({
    preference: {
      of: logProbsOf(model, batch),
      given: [base.with(null, (reference) => logProbsOf(reference, batch))],
      loss: (policy, reference) => dpoLoss(policy, reference!, batch, beta),
    },
  }),
});

/** −log σ(log-odds of the chosen answer − those of the rejected one), of mean log-probabilities. Source: Hong et al. 2024 (ORPO), eq. 6 and 7. */
function oddsRatioLoss(logProbs: Float32Array, { answers, pairs }: PairBatch) {
  const [sums, lengths] = [new Float64Array(2 * pairs), new Float64Array(2 * pairs)];
  for (const [i, answer] of answers.entries()) {
    sums[answer]! += logProbs[i]!;
    lengths[answer]!++;
  }
  const means = sums.map((sum, answer) => sum / lengths[answer]!);
  const odds = means.map((mean) => mean - Math.log1p(-Math.exp(mean)));
  const ratios = Array.from({ length: pairs }, (_, i) => odds[2 * i]! - odds[2 * i + 1]!);
  const slope = (answer: number) =>
    ((answer % 2 === 0 ? -1 : 1) * sigmoid(-ratios[answer >> 1]!)) / (1 - Math.exp(means[answer]!));
  return {
    sum: ratios.reduce((sum, ratio) => sum + Math.log1p(Math.exp(-ratio)), 0),
    gradient: Float32Array.from(answers, (answer) => slope(answer) / lengths[answer]!),
    metrics: { log_odds: { sum: ratios.reduce((a, b) => a + b, 0), count: pairs } },
  };
}

/** Two terms, each with its own count: tokens of chosen answers, and pairs. */
const orpoTask: Task<Pair, PairBatch> = {
  ...pairs,
  terms(model, batch) {
    const { lm_head } = asCausalLM(model, "a preference");
    const hidden = gatherRows(model.hidden(batch.input), batch.rows);
    const ofChosen = Int32Array.from(batch.answers.keys()).filter((i) => batch.answers[i]! % 2 === 0);
    return {
      nll: {
        sum: lm_head.crossEntropy(
          gatherRows(hidden, ofChosen),
          batch.targets.filter((_, i) => batch.answers[i]! % 2 === 0),
        ),
      },
      preference: {
        of: lm_head.logProbs(hidden, batch.targets),
        weight: 0.5,
        loss: (logProbs) => oddsRatioLoss(logProbs, batch),
      },
    };
  },
};

const answers: RowFormat<{ prompt: string; chosen: string; rejected: string; where: string }, never> = {
  layoutOfEntry: () => undefined,
  read: (row) => ({ prompt: row.text("prompt"), chosen: row.text("chosen"), rejected: row.text("rejected") }),
};

const toyDpo = defineObjective<Pair, { beta: number }>({
  name: "toy-dpo",
  summary: "prefers the chosen answers",
  config: z.strictObject({ beta: z.number().positive().default(0.1).describe("how far the model may go from the base") }),
  usedBy: "chat",
  async read(dataset, { files, tokenizer }) {
    const { rows } = await loadRows({ dataset, ...files }, answers);
    return rows.map(({ prompt, where, ...texts }) => {
      const begin = tokenizer.encode(prompt, { special: false });
      const example = (text: string): Example => {
        const ids = Int32Array.from([...begin, ...tokenizer.encode(text, { special: false })]);
        return { ids, supervised: new Uint8Array(ids.length).fill(1, begin.length), where, tokens: ids.length };
      };
      const [chosen, rejected] = [example(texts.chosen), example(texts.rejected)];
      return { where, chosen, rejected, tokens: chosen.tokens + rejected.tokens };
    });
  },
  task: (_rows, { beta }) => dpoTask(beta),
});

(objectives as Objective<never, never>[]).push(toyDpo as unknown as Objective<never, never>);

const methodNamed = (name: string) => tuners.find((tuner) => tuner.name === name)!;
const tunedBy = (name: string) => methodNamed(name).bind(methodNamed(name).config.parse({}));

function writePairs(folder: string): string {
  const path = join(folder, "pairs.jsonl");
  const rows = Array.from({ length: 12 }, (_, i) => ({ prompt: `${i}: `, chosen: "the cat sat", rejected: "dogs bark" }));
  writeFileSync(path, rows.map((row) => JSON.stringify(row)).join("\n"));
  return path;
}

for (const [name, settings] of Object.entries({
  lora: { learning_rate: 1e-2 },
  "prefix-tuning": { learning_rate: 0.1, lora_dropout: undefined },
  full: { learning_rate: 1e-3, lora_dropout: undefined },
}))
  test(`a preference trains under ${name} through the ordinary loop, by being in the list; it resumes, and tells its metrics`, async (t) => {
    const folder = temporaryFolder(t);
    const recipe = tinyRecipe(folder, {
      ...{ stage: "toy-dpo", dataset: [writePairs(folder)], finetuning_type: name, packing: false, beta: 0.5, val_size: 4 },
      ...{ per_device_train_batch_size: 2, num_train_epochs: 8, save_strategy: "steps", save_steps: 7, ...settings },
    });
    const events = await collect(recipe);
    const steps = events.filter((event): event is StepEvent => event.type === "step");
    const [first, last] = [steps[0]!, steps.at(-1)!];
    if (name !== "prefix-tuning")
      assert.ok(Math.abs(first.loss - Math.log(2)) < 1e-5, `the start is the reference: ${first.loss}`);
    assert.ok(last.loss < 0.5 * first.loss, `from ${first.loss} to ${last.loss}`);
    assert.equal(last.metrics!["rewards/accuracies"], 1);
    assert.ok((last.metrics!["rewards/margins"] as number) > 0.5);
    const [evaluation] = events.filter((event) => event.type === "eval").slice(-1);
    assert.ok(evaluation!.evalLoss < 0.5 * first.loss && evaluation!.metrics!["rewards/accuracies"] === 1);

    const resumed = await collect({ ...recipe, resume_from_checkpoint: join(folder, "out/checkpoint-7") });
    assert.deepEqual(trace(resumed), trace(events).slice(7));
  });

const rng = new Rng(5);
const randomExample = (length: number, where: string): Example => ({
  ids: Int32Array.from({ length }, () => rng.below(259)),
  supervised: new Uint8Array(length).fill(1, 3),
  where,
  tokens: length,
});
const randomPairs = Array.from({ length: 5 }, (_, i): Pair => {
  const [chosen, rejected] = [randomExample(6 + i, `pair ${i}`), randomExample(12 - i, `pair ${i}`)];
  return { where: `pair ${i}`, chosen, rejected, tokens: chosen.tokens + rejected.tokens };
});

/** A model that trains, away from its start. */
async function movedTrainee(name: string, usesBase: boolean): Promise<Trainee> {
  const files = await openModelFolder(join(tinyLlama, "tied"));
  const parts = { ...partsOf(files, tunedBy(name)), keepsBase: usesBase };
  const start = { rng: new Rng(0), encode: () => Int32Array.of(1, 2, 3) };
  const trainee = await assemble(device, parts, { weightsFrom: null, start, hasNewHead: false });
  for (const { value } of trainee.parameters.values()) {
    const values = await value.read();
    const moves = randomValues(rng, value.shape, 0.02);
    device.kernels.write(
      value.id,
      0,
      values.map((x, i) => x + moves[i]!),
    );
  }
  return trainee;
}

const tasks = { dpo: dpoTask(0.5), "nll and odds ratio": orpoTask };

for (const [what, task] of Object.entries(tasks))
  for (const name of ["lora", "prefix-tuning", "full"])
    test(`${what}, ${name}: the gradients of a step are finite differences of its loss`, async () => {
      const trainee = await movedTrainee(name, task.usesBase === true);
      const { result, gradients } = await gradientsOf(trainee, task, [randomPairs.slice(0, 2), randomPairs.slice(2)]);
      const lossOf = async () => (await evaluate(trainee.base, trainedName, task, randomPairs, { batchSize: 5 }))!.loss;
      assert.ok(Math.abs((await lossOf()) - result.loss) < 1e-5);
      assert.equal(gradients.size, trainee.parameters.size);
      for (const [path, { value }] of trainee.parameters) {
        const [values, gradient] = [await value.read(), gradients.get(path)!];
        const norm = Math.hypot(...gradient);
        const direction = gradient.map((g, i) => g / (norm + 1e-12) + (0.2 * Math.sin(i)) / Math.sqrt(gradient.length));
        const step = 1e-2;
        const at = async (sign: number) => {
          device.kernels.write(
            value.id,
            0,
            values.map((x, i) => x + sign * step * direction[i]!),
          );
          return await lossOf();
        };
        const expected = ((await at(1)) - (await at(-1))) / (2 * step);
        device.kernels.write(value.id, 0, values);
        const actual = gradient.reduce((sum, g, i) => sum + g * direction[i]!, 0);
        assert.ok(Math.abs(actual - expected) < 0.02 * norm + 2e-4, `${path}: ${actual} against ${expected}`);
      }
      trainee.dispose();
    });

test("several terms, each with its own count: accumulated micro-batches equal one batch, in loss, gradients and metrics", async () => {
  const trainee = await movedTrainee("lora", false);
  const whole = await gradientsOf(trainee, orpoTask, [randomPairs]);
  const { nll, preference, log_odds } = whole.result.metrics as Record<string, number>;
  assert.ok(Math.abs(whole.result.loss - (nll! + 0.5 * preference!)) < 1e-9 && log_odds !== undefined);
  for (const cuts of [[1], [2, 4]]) {
    const bounds = [0, ...cuts, randomPairs.length];
    const parts = await gradientsOf(
      trainee,
      orpoTask,
      bounds.slice(1).map((end, i) => randomPairs.slice(bounds[i], end)),
    );
    assert.ok(Math.abs(parts.result.loss - whole.result.loss) < 1e-6);
    for (const [name, value] of Object.entries(whole.result.metrics!))
      assert.ok(Math.abs((parts.result.metrics![name] as number) - (value as number)) < 1e-5, name);
    for (const [path, gradient] of whole.gradients) {
      const difference = Math.hypot(...gradient.map((g, i) => g - parts.gradients.get(path)![i]!));
      assert.ok(difference < 1e-5 * Math.hypot(...gradient) + 1e-8, `${path}: ${difference}`);
    }
  }
  trainee.dispose();
});

for (const [what, task] of Object.entries(tasks))
  for (const name of ["lora", "full"])
    test(`${what}, ${name}: the symbolic step has the engine's peak, byte by byte`, async () => {
      const before = engine.stats().liveBytes;
      const trainee = await movedTrainee(name, task.usesBase === true);
      const parts = {
        ...partsOf(await openModelFolder(join(tinyLlama, "tied")), tunedBy(name)),
        keepsBase: task.usesBase === true,
      };
      await assertPeakOf(trainee, { parts, task, rows: randomPairs, evalRows: randomPairs, compute: "f32" }, before);
    });

test("a term without a count, and seeds that do not fit what they are for, are refused", async () => {
  const trainee = await movedTrainee("lora", false);
  const uncounted: Task<Pair, Batch & PairBatch> = {
    ...orpoTask,
    collate: (rows) => ({ ...pairs.collate(rows), counts: { nll: 1 } }),
  };
  await assert.rejects(runStep(trainee, uncounted, [randomPairs], anyStep), /the term "preference" of the loss has no count/);
  const short: Task<Pair, PairBatch> = {
    ...pairs,
    terms: (model, batch) => ({
      preference: { of: logProbsOf(model, batch), loss: () => ({ sum: 1, gradient: new Float32Array(2) }) },
    }),
  };
  await assert.rejects(runStep(trainee, short, [randomPairs], anyStep), { code: "SHAPE" });
  const broken: Task<Pair, PairBatch> = {
    ...pairs,
    terms: (model, batch) => ({
      preference: { of: logProbsOf(model, batch), loss: (values) => ({ sum: Number.NaN, gradient: values }) },
    }),
  };
  await assert.rejects(runStep(trainee, broken, [randomPairs], anyStep), {
    code: "DIVERGED",
    message: /step 1: the loss is NaN on pair 0, pair 1/,
  });
  trainee.dispose();
});
