/** Training in rounds: experience first, then optimizer steps; what a stop drops and what it finishes; evaluations that are due. */
import assert from "node:assert/strict";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { scope } from "../src/core/tensor.js";
import type { Example } from "../src/data/example.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { asCausalLM } from "../src/models/causal-lm.js";
import { packSequences } from "../src/models/token-batch.js";
import { type NextTokenBatch, nextToken } from "../src/objectives/next-token.js";
import type { RoundStart, Task } from "../src/objectives/objective.js";
import { type Trainee, trainedName } from "../src/train/assemble.js";
import { loadCheckpoint, saveCheckpoint } from "../src/train/checkpoint.js";
import { isUnfinished, type LoopEvent, noProgress, type Progress, type TrainSettings, train } from "../src/train/loop.js";
import { StepPlan } from "../src/train/step-plan.js";
import { lora } from "../src/tuners/lora/lora.js";
import { loadTuned, saveTuned } from "../src/tuners/tuned-files.js";
import { exampleOf, loadTinyLlama, reference } from "./support/tiny-llama.js";
import { traineeOf } from "./support/trainee.js";

const rows = reference.batches.flatMap(({ micro_batches }) => micro_batches.flat()).map((sequence) => exampleOf(sequence));
const heldOut = reference.sequences.map((sequence) => exampleOf(sequence));
const stepsPerRound = 2;
const epoch = (n: number) => [[n], [1, 2], [3], [4]];
/** Eight steps, with roll-outs and without. */
const plan = new StepPlan(epoch, { accumulationSteps: 2, epochs: 2, maxSteps: 0, stepsPerRound });
const plainPlan = new StepPlan(epoch, { accumulationSteps: 2, epochs: 4, maxSteps: 0 });

/** What the model would write in the place of the last token, with a token of its own dice before it: depends on weights, rows and round. */
async function written({ ids, ...row }: Example, base: Trainee["base"], rng: Rng): Promise<Example> {
  const drawn = ids.slice();
  drawn[drawn.length - 2] = rng.below(259);
  const logits = base.with(trainedName, (model) =>
    scope(() => asCausalLM(model, "a roll-out").logits(packSequences([drawn]), Int32Array.of(drawn.length - 2))),
  );
  const values = await logits.read();
  logits.dispose();
  drawn[drawn.length - 1] = values.indexOf(Math.max(...values));
  return { ...row, ids: drawn };
}

/** Each round makes two steps of two micro-batches. */
function rollOutTask(seen: RoundStart[] = [], during: (at: RoundStart) => void = () => {}): Task<Example, NextTokenBatch> {
  return {
    ...nextToken,
    stepsPerRound,
    async rollOut(prompts, at, base) {
      seen.push(at);
      const experience: Example[] = [];
      for (const row of [...prompts, ...prompts]) experience.push(await written(row, base, at.rng));
      during(at);
      at.signal.throwIfAborted();
      const half = Math.ceil(experience.length / 2);
      const steps = [experience.slice(0, half), experience.slice(half)].map((step) => [step.slice(0, 1), step.slice(1)]);
      return { steps, metrics: { reward: { sum: 3 * prompts.length, count: prompts.length } } };
    },
  };
}

const everything: TrainSettings = {
  ...{ learningRate: 1e-2, schedule: "cosine", warmupSteps: 1, maxGradNorm: 1, seed: 1 },
  ...{ evalSteps: 0, saveSteps: 0, evalBatchSize: 1 },
};

const tuning = lora.bind(lora.config.parse({ lora_dropout: 0.1 }));

async function tuned() {
  const { model, files } = await loadTinyLlama("tied");
  tuning.apply(model, new Rng(1));
  const trainee = traineeOf(model);
  const dispose = () => {
    trainee.dispose();
    model.dispose();
  };
  return { model, files, trainee, dispose };
}

interface Options {
  readonly settings?: Partial<TrainSettings>;
  readonly progress?: Progress;
  readonly evalRows?: readonly Example[];
  readonly stop?: AbortController;
  readonly onEvent?: (event: LoopEvent) => void;
}

async function run(trainee: Trainee, task: Task<Example, NextTokenBatch>, options: Options = {}): Promise<LoopEvent[]> {
  const { settings, progress = noProgress(), evalRows = [], stop = new AbortController(), onEvent = () => {} } = options;
  const events: LoopEvent[] = [];
  for await (const event of train({
    ...{ trainee, task: task as Task, trainRows: rows, evalRows, progress, signal: stop.signal },
    plan: task.rollOut === undefined ? plainPlan : plan,
    settings: { ...everything, ...settings },
    save: async () => `checkpoint-${progress.step}`,
  })) {
    events.push(event);
    onEvent(event);
  }
  return events;
}

/** What was computed, to the bit. */
const bits = (events: readonly LoopEvent[]) =>
  events.flatMap((event) => {
    if (event.type === "step") return [[event.step, event.epoch, event.loss, event.gradNorm, event.learningRate, event.tokens]];
    return event.type === "eval" ? [[event.step, event.evalLoss]] : [];
  });

const order = (events: readonly LoopEvent[]) => events.map(({ type, step }) => `${type} ${step}`);

test("a round makes experience of its rows once, then takes its steps, which tell what the experience was", async () => {
  const { trainee, dispose } = await tuned();
  const seen: RoundStart[] = [];
  const events = await run(trainee, rollOutTask(seen));
  assert.deepEqual(
    seen.map(({ round, step }) => [round, step]),
    [
      [0, 0],
      [1, 2],
      [2, 4],
      [3, 6],
    ],
  );
  assert.equal(plan.totalSteps, 8);
  assert.deepEqual(
    order(events),
    Array.from({ length: 8 }, (_, i) => `step ${i + 1}`),
  );
  for (const event of events) assert.deepEqual(event.type === "step" && event.metrics, { reward: 3 });
  const epochs = events.map((event) => event.type === "step" && event.epoch);
  assert.deepEqual(epochs, [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]);
  dispose();
});

test("checkpoints and evaluations that fall into a round come after it", async () => {
  const { trainee, dispose } = await tuned();
  const events = await run(trainee, rollOutTask(), { settings: { evalSteps: 3, saveSteps: 5 }, evalRows: heldOut });
  assert.deepEqual(
    order(events).filter((name) => !name.startsWith("step")),
    ["eval 4", "eval 6", "checkpoint 6", "eval 8"],
  );
  dispose();
});

test("stopped while experience is made, the round is dropped; stopped within its steps, it is finished", async () => {
  for (const throws of [true, false]) {
    const { trainee, dispose } = await tuned();
    const [stop, progress] = [new AbortController(), noProgress()];
    const task = rollOutTask([], ({ round }) => round === 1 && stop.abort());
    const quiet: typeof task = { ...task, rollOut: async (...args) => await task.rollOut!(...args).catch(() => ({ steps: [] })) };
    assert.deepEqual(order(await run(trainee, throws ? task : quiet, { stop, progress })), ["step 1", "step 2"]);
    assert.ok(isUnfinished(progress, plan) && progress.step === 2);
    dispose();
  }
  const { trainee, dispose } = await tuned();
  const stop = new AbortController();
  const onEvent = ({ step }: LoopEvent) => step === 3 && stop.abort();
  const events = await run(trainee, rollOutTask(), { stop, onEvent, settings: { saveSteps: 1 } });
  assert.deepEqual(order(events), ["step 1", "step 2", "checkpoint 2", "step 3", "step 4"]);
  dispose();
});

test("what goes wrong in a roll-out ends the run as what it is", async () => {
  const { trainee, dispose } = await tuned();
  const broken = (rollOut: Task<Example, NextTokenBatch>["rollOut"]) => run(trainee, { ...rollOutTask(), rollOut: rollOut! });
  await assert.rejects(
    broken(async () => ({ steps: [[[rows[0]!]]] })),
    /rollOut gave 1 optimizer steps, and stepsPerRound is 2/,
  );
  const stop = new AbortController();
  const fails = rollOutTask([], () => {
    stop.abort();
    throw new RangeError("no such token");
  });
  await assert.rejects(run(trainee, fails, { stop }), /no such token/);
  dispose();
});

test("resumed between any two rounds, a run equals an uninterrupted one, bit by bit", async (t) => {
  const folder = temporaryFolder(t);
  const whole = await tuned();
  const settings = { evalSteps: 4 };
  const expected = bits(await run(whole.trainee, rollOutTask(), { settings, evalRows: heldOut }));
  for (const stopAt of [1, 4, 6]) {
    const first = await tuned();
    const [stop, progress] = [new AbortController(), noProgress()];
    const onEvent = ({ type, step }: LoopEvent) => type === "step" && step === stopAt && stop.abort();
    const before = bits(await run(first.trainee, rollOutTask(), { settings, evalRows: heldOut, stop, progress, onEvent }));
    const path = join(folder, `checkpoint-${stopAt}`);
    const writeModel = (into: string) => saveTuned(into, first.model, tuning, { name: "tiny", config: first.files.config });
    const { optimizer } = first.trainee;
    await saveCheckpoint(path, { writeModel, optimizer, progress, work: "work", startedAt: new Date(0) });
    first.dispose();

    const resumed = await tuned();
    await loadTuned(path, resumed.model, tuning);
    const itsProgress = noProgress();
    await loadCheckpoint(path, resumed.trainee.optimizer, itsProgress, "work");
    assert.deepEqual(itsProgress, progress);
    const after = bits(await run(resumed.trainee, rollOutTask(), { settings, evalRows: heldOut, progress: itsProgress }));
    assert.deepEqual([...before, ...after], expected, `stopped at step ${stopAt}`);
    resumed.dispose();
  }
  whole.dispose();
});

test("an evaluation that a stop cuts short says nothing, and comes first when the run goes on, also after the last step", async () => {
  const plain = async (): Promise<[bits: unknown[], names: string[]]> => {
    const { trainee, dispose } = await tuned();
    const events = await run(trainee, nextToken, { settings: { evalSteps: 4 }, evalRows: heldOut });
    dispose();
    return [bits(events), order(events)];
  };
  const [expected, names] = await plain();
  assert.deepEqual(names.slice(3, 6), ["step 4", "eval 4", "step 5"]);
  for (const evaluation of [0, 1]) {
    const { trainee, dispose } = await tuned();
    const [stop, progress] = [new AbortController(), noProgress()];
    let batches = 0;
    const stopping: Task<Example, NextTokenBatch> = {
      ...nextToken,
      collate(examples) {
        const isHeldOut = heldOut.includes(examples[0]!);
        if (isHeldOut && batches++ === 2 * evaluation) stop.abort(); // the first of two batches
        return nextToken.collate(examples);
      },
    };
    const before = await run(trainee, stopping, { settings: { evalSteps: 4 }, evalRows: heldOut, stop, progress });
    assert.equal(order(before).at(-1), `step ${4 + 4 * evaluation}`);
    assert.ok(progress.isEvaluationDue && isUnfinished(progress, plan));
    const after = await run(trainee, nextToken, { settings: { evalSteps: 4 }, evalRows: heldOut, progress });
    assert.equal(order(after)[0], `eval ${4 + 4 * evaluation}`);
    assert.deepEqual([...bits(before), ...bits(after)], expected);
    assert.ok(!isUnfinished(progress, plan));
    dispose();
  }
});
