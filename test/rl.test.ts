/** Learning from own answers: what is drawn is what is scored, a step is the same however it is cut, rewards go up, stops lose nothing. */
import assert from "node:assert/strict";
import { join } from "node:path";
import test from "node:test";
import type { z } from "zod";
import { Rng } from "../src/core/rng.js";
import { decodeAll } from "../src/generate/decoder.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { packFamilies } from "../src/models/branches.js";
import type { Batch, RoundStart, Task } from "../src/objectives/objective.js";
import { GrpoConfig, grpoTask } from "../src/objectives/rl/grpo/grpo.js";
import { type PolicyRow, scoreAnswers } from "../src/objectives/rl/policy.js";
import { PpoConfig, ppoTask } from "../src/objectives/rl/ppo/ppo.js";
import type { PpoTrajectory } from "../src/objectives/rl/ppo/ppo-loss.js";
import { RlooConfig, rlooTask } from "../src/objectives/rl/rloo/rloo.js";
import { Sampling } from "../src/objectives/rl/settings.js";
import type { Reward } from "../src/rewards/reward.js";
import type { EvalEvent, StepEvent } from "../src/runs/events.js";
import { byteTokenizer } from "../src/text/tokenizer/byte-tokenizer.js";
import { type Trainee, trainedName } from "../src/train/assemble.js";
import { loadCheckpoint, saveCheckpoint } from "../src/train/checkpoint.js";
import { type LoopEvent, noProgress, type Progress, type TrainSettings, train } from "../src/train/loop.js";
import { runStep } from "../src/train/step.js";
import { StepPlan } from "../src/train/step-plan.js";
import { collectTuned, openTuned, readInto, writeTuned } from "../src/tuners/tuned-files.js";
import { loraOf, lowTokens, promptRows, rlTrainee } from "./support/rl.js";
import { anyStep, gradientsOf } from "./support/step-gradients.js";

const tokenizer = byteTokenizer();
const judgesOf = (rewards: readonly Reward[] = [lowTokens], said: string[] = []) => ({
  ...{ tokenizer, rewards },
  warn: (message: string) => said.push(message),
});
const small = { num_generations: 4 };

/** Settings of a stage and how it samples, together as tests write them. */
function configOf<C>(schema: z.ZodType<C>, { temperature, max_new_tokens = 8, ...settings }: Record<string, unknown>) {
  return { ...schema.parse(settings), ...Sampling.parse({ temperature, max_new_tokens }) };
}

type AnyTask = Task<PolicyRow<never>, Batch>;
const grpoOf = (settings: object = {}, rewards: readonly Reward[] = [lowTokens], said: string[] = []) =>
  grpoTask(configOf(GrpoConfig, { ...small, ...settings }), judgesOf(rewards, said)) as unknown as AnyTask;
const rlooOf = (settings: object = {}) =>
  rlooTask(configOf(RlooConfig, { ...small, ...settings }), judgesOf()) as unknown as AnyTask;

const ppoOf = (settings: Record<string, unknown> = {}, rewards: readonly Reward[] = [lowTokens]) =>
  ppoTask(configOf(PpoConfig, settings), judgesOf(rewards)) as unknown as AnyTask;

const startOf = (batchSizes: readonly number[], changes: Partial<RoundStart> = {}): RoundStart => ({
  ...{ round: 0, step: 0, policy: trainedName, rng: new Rng(7), signal: new AbortController().signal },
  ...{ batchSizes, ...changes },
});

for (const temperature of [0.6, 1, 1.3])
  test(`at temperature ${temperature} tokens are scored as they were drawn, and the first ratio is 1, dropout or not`, async () => {
    const task = grpoOf({ temperature, num_iterations: 2, beta: 0.1 });
    const trainee = await rlTrainee(task, loraOf({ lora_dropout: 0.2 }));
    const rows = promptRows(5);
    const { steps } = await task.rollOut!(rows as never, startOf([3, 2]), trainee.base);
    assert.deepEqual(
      steps.map((step) => step.map((batch) => batch.length)),
      [
        [3, 2],
        [3, 2],
      ],
    );
    const { metrics } = await runStep(trainee, task, steps[0]!, anyStep);
    for (const [name, share] of Object.entries(metrics!)) if (name.startsWith("clip")) assert.equal(share, 0);
    let compared = 0;
    for (const batch of steps[0]!) {
      const again = task.collate(batch) as unknown as Parameters<typeof scoreAnswers>[0];
      const values = await scoreAnswers(again, (body) => trainee.base.with(trainedName, body), temperature);
      const answers = batch.flatMap((row) => row.answers!) as { old: Float32Array; reference: Float32Array }[];
      for (const [i, { old, reference }] of answers.entries()) {
        assert.deepEqual(values[i], old);
        assert.deepEqual(old, reference, "an adapter that has not learned is its base");
        compared += old.length;
      }
    }
    assert.ok(compared > 20);
    trainee.dispose();
  });

for (const temperature of [0.6, 1, 1.3])
  test(`at temperature ${temperature} the decoder and scoring agree on how likely drawn tokens are`, async () => {
    const trainee = await rlTrainee({}, loraOf());
    await stir(trainee);
    const sampling = { temperature, topP: 1, topK: 0, repetitionPenalty: 1 };
    const prompts = promptRows(6).map(({ prompt }) => prompt);
    const requests = prompts.map((prompt, seed) => ({
      ...{ prompt, adapter: trainedName, maxNewTokens: 6, stopIds: tokenizer.stopIds, sampling, seed },
      logProbs: { temperature },
    }));
    const completions = await decodeAll(trainee.base, requests, 4);
    const answers = completions.map(({ ids, stopId }) => ({
      ids: stopId === null ? ids : Int32Array.of(...ids, stopId),
      counts: true,
    }));
    const branches = packFamilies(prompts.map((prompt, i) => ({ prompt, answers: [answers[i]!.ids] })));
    const scores = await scoreAnswers({ branches, answers }, (body) => trainee.base.with(trainedName, body), temperature);
    for (const [i, { logProbs }] of completions.entries())
      for (const [t, drawn] of logProbs!.entries())
        assert.ok(Math.abs(Math.exp(scores[i]![t]! - drawn) - 1) < 1e-5, `answer ${i}, token ${t}: ${drawn}, ${scores[i]![t]}`);
    trainee.dispose();
  });

/** Moves what trains away from where it began. */
async function stir({ base, parameters }: Trainee, size = 0.05): Promise<void> {
  const rng = new Rng(11);
  for (const { value } of parameters.values()) {
    const values = await value.read();
    base.device.kernels.write(
      value.id,
      0,
      values.map((x) => x + size * rng.normal()),
    );
  }
}

const norm = (values: Iterable<number>) => Math.hypot(...values);

test("ppo learns alike from scores that all lie elsewhere, unless told not to centre them", async () => {
  const shifted: Reward = {
    ...lowTokens,
    score: async (samples, at) => (await lowTokens.score(samples, at)).map((score) => score! - 4),
  };
  const advantagesFor = async (reward: Reward, center_scores: boolean) => {
    const task = ppoOf({ center_scores }, [reward]);
    const trainee = await rlTrainee(task);
    const { steps } = await task.rollOut!(promptRows(6) as never, startOf([6]), trainee.base);
    trainee.dispose();
    const rows = steps[0]!.flat() as unknown as readonly PolicyRow<PpoTrajectory>[];
    return rows.flatMap(({ answers }) => [...answers![0]!.advantages]);
  };
  const plain = await advantagesFor(lowTokens, true);
  const differences = (values: readonly number[]) => Math.max(...values.map((value, i) => Math.abs(value - plain[i]!)));
  assert.ok(differences(await advantagesFor(shifted, true)) < 1e-5);
  assert.ok(differences(await advantagesFor(shifted, false)) > 0.1);
});

for (const loss_type of ["dapo", "grpo", "dr_grpo", "gspo", "cispo"])
  test(`${loss_type}: a step of 1 × 8, 2 × 4, 4 × 2 and 8 × 1 prompts is the same step`, async () => {
    const task = grpoOf({ loss_type, beta: 0.05, num_iterations: 2, mask_truncated_completions: true, max_new_tokens: 5 });
    const trainee = await rlTrainee(task);
    await stir(trainee);
    const { steps } = await task.rollOut!(promptRows(8) as never, startOf([8]), trainee.base);
    await stir(trainee, 0.01);
    const rows = steps[0]!.flat();
    const whole = await gradientsOf(trainee, task, [rows]);
    for (const size of [1, 2, 4]) {
      const batches = Array.from({ length: 8 / size }, (_, i) => rows.slice(i * size, (i + 1) * size));
      const parts = await gradientsOf(trainee, task, batches);
      assert.ok(Math.abs(parts.result.loss - whole.result.loss) < 1e-5, `${parts.result.loss}, ${whole.result.loss}`);
      for (const [name, gradient] of whole.gradients) {
        const difference = norm(gradient.map((g, i) => g - parts.gradients.get(name)![i]!));
        assert.ok(difference <= 1e-5 * norm(gradient) + 1e-8, `${name}: ${difference} of ${norm(gradient)}`);
      }
    }
    trainee.dispose();
  });

for (const [name, task] of Object.entries({
  ppo: ppoOf({ kl_coef: 0.1, cliprange: 0.1, vf_coef: 0.5 }),
  grpo: grpoOf({ beta: 0.2, num_iterations: 2 }),
  rloo: rlooOf({ num_iterations: 2 }),
}))
  test(`${name}: the gradients of a step are finite differences of its loss`, async () => {
    const trainee = await rlTrainee(task);
    await stir(trainee, 0.02);
    const { steps } = await task.rollOut!(promptRows(4) as never, startOf([4]), trainee.base);
    await stir(trainee, 0.005);
    const { gradients } = await gradientsOf(trainee, task, steps[0]!);
    assert.equal(gradients.size, trainee.parameters.size);
    for (const [path, { value }] of trainee.parameters) {
      const [values, gradient] = [await value.read(), gradients.get(path)!];
      const size = norm(gradient);
      const direction = gradient.map((g, i) => g / (size + 1e-12) + (0.2 * Math.sin(i)) / Math.sqrt(gradient.length));
      const step = 3e-3;
      const at = async (sign: number) => {
        trainee.base.device.kernels.write(
          value.id,
          0,
          values.map((x, i) => x + sign * step * direction[i]!),
        );
        return (await gradientsOf(trainee, task, steps[0]!)).result.loss;
      };
      const expected = ((await at(1)) - (await at(-1))) / (2 * step);
      trainee.base.device.kernels.write(value.id, 0, values);
      const actual = gradient.reduce((sum, g, i) => sum + g * direction[i]!, 0);
      assert.ok(Math.abs(actual - expected) < 0.03 * size + 3e-4, `${path}: ${actual}, expected ${expected}`);
    }
    trainee.dispose();
  });

test("groups whose rewards are all the same pull nothing but by their KL term, which a setting leaves out; they are counted", async () => {
  const same: Reward = { name: "same", weight: 1, score: async (samples) => samples.map(() => 0.3) };
  for (const [beta, drop_flat_groups, pulls] of [
    [0, false, false],
    [0.5, false, true],
    [0.5, true, false],
  ] as const) {
    const task = grpoOf({ beta, drop_flat_groups }, [same]);
    const trainee = await rlTrainee(task);
    await stir(trainee);
    const { steps, metrics } = await task.rollOut!(promptRows(3) as never, startOf([3]), trainee.base);
    assert.deepEqual(metrics!.frac_reward_zero_std, { sum: 3, count: 3 });
    assert.ok(Math.abs(metrics!.reward!.sum / metrics!.reward!.count - 0.3) < 1e-12);
    const { gradients } = await gradientsOf(trainee, task, steps[0]!);
    assert.equal(
      [...gradients.values()].some((gradient) => norm(gradient) > 0),
      pulls,
      `beta ${beta}, ${drop_flat_groups}`,
    );
    trainee.dispose();
  }
});

test("the reward that is told is the weighted sum that is maximised; what a reward leaves open, or cannot say, is named", async () => {
  const lengths: Reward = { name: "length", weight: -0.25, score: async (all) => all.map(({ answerIds }) => answerIds.length) };
  const some: Reward = { name: "some", weight: 2, score: async (all) => all.map((_, i) => (i % 2 === 0 ? 1 : null)) };
  const task = grpoOf({}, [lengths, some]);
  const trainee = await rlTrainee(task);
  const { metrics } = await task.rollOut!(promptRows(4) as never, startOf([4]), trainee.base);
  const mean = (name: string) => metrics![name]!.sum / metrics![name]!.count;
  assert.ok(Math.abs(mean("reward") - (-0.25 * mean("rewards/length/mean") + 1)) < 1e-9);
  assert.deepEqual([mean("rewards/some/mean"), metrics!["rewards/some/mean"]!.count], [1, 8]);
  const said: string[] = [];
  const bad: Reward = { name: "bad", weight: 1, score: async (all) => all.map((_, i) => (i === 0 ? Number.NaN : i)) };
  const { steps } = await grpoOf({}, [bad], said).rollOut!(promptRows(4) as never, startOf([4]), trainee.base);
  assert.match(said[0]!, /the reward bad gave NaN for 1 of 16 answers, the first row 0: these count as missing/);
  assert.equal((steps[0]![0]![0]!.answers![0] as unknown as { advantage: number }).advantage, 0);
  const none: Reward = { name: "none", weight: 1, score: async (all) => all.map(() => null) };
  for (const task of [grpoOf({}, [none]), ppoOf({}, [none])])
    await assert.rejects(task.rollOut!(promptRows(4) as never, startOf([4]), trainee.base), {
      ...{ code: "REWARD", message: /no reward says anything of any of/ },
    });
  trainee.dispose();
});

const rows = promptRows(8);
const settings: TrainSettings = {
  ...{ learningRate: 1e-2, schedule: "constant", warmupSteps: 0, maxGradNorm: 1, seed: 1 },
  ...{ evalSteps: 0, saveSteps: 0, evalBatchSize: 4 },
};

const eight = [
  [0, 1, 2, 3],
  [4, 5],
  [6, 7],
];
const many = Array.from({ length: 4 }, (_, batch) => Array.from({ length: 16 }, (_, i) => 16 * batch + i));

interface Options {
  readonly steps: number;
  readonly settings?: Partial<TrainSettings>;
  readonly progress?: Progress;
  readonly stop?: AbortController;
  readonly onEvent?: (event: LoopEvent) => void;
  readonly batches?: readonly (readonly number[])[];
}

async function run(
  trainee: Trainee,
  task: AnyTask,
  { steps, progress = noProgress(), stop, onEvent, batches = eight, ...rest }: Options,
) {
  const events: LoopEvent[] = [];
  for await (const event of train({
    ...{ trainee, task: task as unknown as Task, trainRows: promptRows(batches.flat().length), progress },
    evalRows: promptRows(68).slice(64),
    plan: new StepPlan(() => batches, {
      ...{ accumulationSteps: 2 * (task.bufferSize ?? 1), epochs: 1, maxSteps: steps, stepsPerRound: task.stepsPerRound },
    }),
    settings: { ...settings, ...rest.settings },
    save: async () => "",
    signal: (stop ?? new AbortController()).signal,
  })) {
    events.push(event);
    onEvent?.(event);
  }
  return events;
}

const stepsOf = (events: readonly LoopEvent[]) => events.filter((event): event is StepEvent => event.type === "step");

const bounded = { num_generations: 16, beta: 0.03, scale_rewards: "none" };
const controls: Record<string, [task: AnyTask, steps: number, batches?: typeof eight]> = {
  grpo: [grpoOf(bounded), 80],
  "grpo with several steps a round": [grpoOf({ ...bounded, num_iterations: 2, loss_type: "grpo" }), 100],
  rloo: [rlooOf({ num_generations: 16, beta: 0.03 }), 80],
  ppo: [ppoOf({ kl_coef: 0.05, kl_control: "fixed", ppo_buffer_size: 2 }), 200, many],
};
for (const [name, [task, steps, batches]] of Object.entries(controls))
  test(`${name}: a reward that is known is maximised, within a bound of KL divergence`, async () => {
    const trainee = await rlTrainee(task, loraOf({ lora_rank: 8 }));
    const events = await run(trainee, task, {
      steps,
      ...(batches && { batches }),
      settings: { evalSteps: steps, learningRate: 5e-3 },
    });
    const all = stepsOf(events).map(({ metrics }) => metrics as Record<string, number>);
    const mean = (some: typeof all, name: string) => some.reduce((sum, metrics) => sum + metrics[name]!, 0) / some.length;
    const [first, last, kl] = [mean(all.slice(0, 5), "reward"), mean(all.slice(-5), "reward"), mean(all.slice(-5), "kl")];
    const held = events.at(-1) as EvalEvent;
    assert.ok(first < 0.6 && last > 0.8 && kl < 2, `from ${first} to ${last}, ${kl} nats a token from the reference`);
    assert.equal(held.evalLoss, -(held.metrics!.reward as number));
    trainee.dispose();
  });

test("stopped in a roll-out or in a round, a run goes on from its checkpoint as if it had not been, bit by bit", async (t) => {
  const folder = temporaryFolder(t);
  const tuning = loraOf({ lora_dropout: 0.1 });
  const seen: string[] = [];
  const watching: Reward = {
    ...lowTokens,
    async score(samples, at) {
      seen.push(...new Set(samples.map(({ where }) => where)));
      return lowTokens.score(samples, at);
    },
  };
  const taskOf = () => grpoOf({ beta: 0.05, num_iterations: 2 }, [watching]);
  const options = { steps: 16, settings: { evalSteps: 6 } };
  const whole = await rlTrainee(taskOf(), tuning);
  const expected = await run(whole, taskOf(), options);
  whole.dispose();
  const bits = (events: readonly LoopEvent[]) =>
    events.map(({ type, step, ...event }) => [
      type,
      step,
      "loss" in event ? [event.loss, event.gradNorm] : "evalLoss" in event && event.evalLoss,
    ]);

  for (const where of ["roll-out", "round"]) {
    const first = await rlTrainee(taskOf(), tuning);
    const [stop, progress] = [new AbortController(), noProgress()];
    const stopping: Reward = {
      ...lowTokens,
      async score(samples, at) {
        if (where === "roll-out" && progress.step === 8) stop.abort();
        return lowTokens.score(samples, at);
      },
    };
    const task = grpoOf({ beta: 0.05, num_iterations: 2 }, [stopping]);
    const before = await run(first, task, {
      ...{ ...options, stop, progress },
      onEvent: ({ type, step }) => where === "round" && type === "step" && step === 7 && stop.abort(),
    });
    assert.equal(progress.step, 8);
    const path = join(folder, `checkpoint-${where}`);
    const origin = { name: "tiny", config: { model_type: "llama" } };
    const tuned = first.base.with(trainedName, (model) => collectTuned(model, tuning, origin));
    const writeModel = (into: string) => writeTuned(into, tuned);
    await saveCheckpoint(path, { writeModel, optimizer: first.optimizer, progress, work: "work", startedAt: new Date(0) });
    first.dispose();

    const second = await rlTrainee(taskOf(), tuning);
    await readInto(second.parameters, await openTuned(path, tuning));
    const again = noProgress();
    await loadCheckpoint(path, second.optimizer, again, "work");
    seen.length = 0;
    const after = await run(second, taskOf(), { ...options, progress: again });
    assert.deepEqual([...bits(before), ...bits(after)], bits(expected), where);
    second.dispose();
  }
  // From step 8 on: rounds of four and four, the second of epoch two; held-out prompts after each three rounds.
  const prompts = seen.filter((name) => Number(name.slice(4)) < 8);
  assert.deepEqual([...prompts].sort(), [...rows, ...rows].map(({ where }) => where).sort());
});
