import { estimateStep } from "../src/advise/estimate.js";
import { Rng } from "../src/core/rng.js";
import { type Cost, SymbolicDevice } from "../src/core/symbolic.js";
import type { Example, Row } from "../src/data/example.js";
import type { ComputeType, NativeEngine } from "../src/engine/kernels.js";
import { ConfigError } from "../src/errors.js";
import { resolveModel } from "../src/io/resolve.js";
import { buildModel } from "../src/models/load.js";
import { nextToken } from "../src/objectives/next-token.js";
import type { Batch, Task } from "../src/objectives/objective.js";
import { type OptimizerName, optimizerNames } from "../src/optim/optimizers.js";
import type { ScheduleName } from "../src/optim/schedule.js";
import type { StepEvent } from "../src/runs/events.js";
import { assemble, type Parts, type Trainee, trainedName } from "../src/train/assemble.js";
import { noProgress, train } from "../src/train/loop.js";
import { peakMemoryBytes } from "../src/train/peak-memory.js";
import { StepPlan } from "../src/train/step-plan.js";
import { tuners } from "../src/tuners/index.js";
import { collectTuned, writeTuned } from "../src/tuners/tuned-files.js";
import type { Start } from "../src/tuners/tuner.js";

export interface TrainingWork {
  readonly model: string;
  /** `finetuning_type` of a recipe; the tuner has its default settings. */
  readonly method: string;
  readonly compute: ComputeType;
  readonly gradientCheckpointing: boolean;
  /** Sequences of a micro-batch, tokens of each, and micro-batches of an optimizer step. */
  readonly rows: number;
  readonly tokens: number;
  readonly accumulate: number;
  readonly steps: number;
  readonly optim: OptimizerName;
  /** Where to write what was trained; null for nowhere. */
  readonly saveTo: string | null;
}

/** For `parseArgs`. */
export const trainingOptions = {
  model: { type: "string" },
  method: { type: "string", default: "lora" },
  compute: { type: "string", default: "auto" },
  rows: { type: "string", default: "4" },
  tokens: { type: "string", default: "512" },
  accumulate: { type: "string", default: "1" },
  steps: { type: "string", default: "4" },
  optim: { type: "string", default: "adamw_torch" },
  checkpointing: { type: "boolean", default: false },
  save: { type: "string" },
} as const;

type Values = { [name in Exclude<keyof typeof trainingOptions, "model" | "checkpointing" | "save">]: string };

/** Throws ConfigError. `fastest` is what `--compute auto` means. */
export function trainingWork(
  values: Values & { model?: string; checkpointing: boolean; save?: string },
  fastest: ComputeType,
): TrainingWork {
  const { model, method, checkpointing } = values;
  if (model === undefined) throw new ConfigError("--model is missing: a folder, a GGUF file or a name of the hub");
  const compute = values.compute === "auto" ? fastest : values.compute;
  if (compute !== "f32" && compute !== "bf16") throw new ConfigError(`--compute: expected auto, f32 or bf16, got ${compute}`);
  const numbers = {
    rows: Number(values.rows),
    tokens: Number(values.tokens),
    accumulate: Number(values.accumulate),
    steps: Number(values.steps),
  };
  for (const [name, value] of Object.entries(numbers))
    if (!Number.isInteger(value) || value < 1) throw new ConfigError(`--${name}: expected a whole number above 0, got ${value}`);
  const optim = optimizerNames.find((name) => name === values.optim);
  if (optim === undefined) throw new ConfigError(`--optim: expected one of ${optimizerNames.join(", ")}, got ${values.optim}`);
  if (numbers.steps < 2) throw new ConfigError("--steps: expected 2 or more; the first one only warms up");
  return { model, method, compute, gradientCheckpointing: checkpointing, optim, saveTo: values.save ?? null, ...numbers };
}

export interface TrainingTimes {
  readonly stepSeconds: readonly number[];
  /** Of an optimizer step. */
  readonly tokens: number;
  /** Peak resident set of the process. */
  readonly peakBytes: number;
  /** Of an optimizer step, as the symbolic device counts it. */
  readonly cost: Cost;
}

/** Runs optimizer steps of the training loop on random tokens, all of them supervised. */
export async function timeTraining(engine: NativeEngine, work: TrainingWork, afterStep = () => {}): Promise<TrainingTimes> {
  const { compute, accumulate } = work;
  const parts = await partsOf(work);
  const { vocabSize } = buildModel(new SymbolicDevice(compute), parts.files.config, parts.files.path).shape;
  const rows = randomExamples(work.rows, work.tokens, vocabSize);
  const oneBatch = rows.map((_, i) => i);
  const steps = Array.from({ length: work.steps }, () => Array.from({ length: accumulate }, () => oneBatch));
  const { events, trainee, peakBytes } = await timeSteps(engine, {
    ...{ parts, compute, task: nextToken, rows, steps, learningRate: 2e-4, schedule: "constant" },
    afterStep,
  });
  if (work.saveTo !== null) {
    const origin = { name: work.model, config: parts.files.config };
    await writeTuned(
      work.saveTo,
      trainee.base.with(trainedName, (model) => collectTuned(model, parts.tuning, origin)),
    );
  }
  trainee.dispose();
  const cost = await estimateStep({ parts, task: nextToken, rows, accumulationSteps: accumulate, evalRows: [], compute });
  const stepSeconds = events.map(({ tokens, tokensPerSecond }) => tokens / tokensPerSecond);
  return { stepSeconds, tokens: work.rows * work.tokens * accumulate, peakBytes, cost };
}

/** What trains is put together from. Throws ConfigError for a method that there is not. */
export async function partsOf({
  model,
  method,
  gradientCheckpointing,
  optim,
}: Pick<TrainingWork, "model" | "method" | "gradientCheckpointing" | "optim">): Promise<Parts> {
  const tuner = tuners.find(({ name }) => name === method);
  if (tuner === undefined)
    throw new ConfigError(`--method: expected one of ${tuners.map(({ name }) => name).join(", ")}, got ${method}`);
  const tuning = tuner.bind(tuner.config.parse({}));
  return {
    ...{ files: await resolveModel(model), tuning, seed: 0, gradientCheckpointing, disableDropout: false },
    optimizer: { name: optim, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, args: {} },
    onNotice: (message) => console.error(message),
  };
}

export interface StepsWork<R extends Row, B extends Batch> {
  readonly parts: Parts;
  readonly compute: ComputeType;
  readonly task: Task<R, B>;
  readonly rows: readonly R[];
  /** The micro-batches of each optimizer step, as row numbers. */
  readonly steps: readonly (readonly (readonly number[])[])[];
  readonly learningRate: number;
  readonly schedule: ScheduleName;
  /** The rows as they train, once there is what trains; outside of what is timed. */
  readonly prepare?: (trainee: Trainee) => Promise<readonly R[]>;
  readonly afterStep?: () => void;
}

/** Takes optimizer steps in the training loop. The caller disposes what was trained. */
export async function timeSteps<R extends Row, B extends Batch>(engine: NativeEngine, work: StepsWork<R, B>) {
  const { parts, compute, task, steps, learningRate, schedule, afterStep } = work;
  const start: Start = { rng: new Rng(0), encode: () => Int32Array.of(0) };
  const trainee = await assemble(
    { kernels: engine, compute },
    { ...parts, keepsBase: task.usesBase === true },
    { weightsFrom: null, start, hasNewHead: false },
  );
  const rows = work.prepare === undefined ? work.rows : await work.prepare(trainee);
  const accumulationSteps = steps[0]!.length;
  const training = train({
    ...{ trainee, task: task as unknown as Task, trainRows: rows, evalRows: [], progress: noProgress() },
    plan: new StepPlan(() => steps.flat(), { accumulationSteps, epochs: 1, maxSteps: steps.length }),
    settings: {
      ...{ learningRate, schedule, warmupSteps: 0, maxGradNorm: 1, seed: 0 },
      ...{ evalSteps: 0, saveSteps: 0, evalBatchSize: 1 },
    },
    save: () => Promise.reject(new Error("a benchmark saves nothing")),
    signal: new AbortController().signal,
  });
  const events: StepEvent[] = [];
  for await (const event of training) {
    if (event.type !== "step") continue;
    events.push(event);
    afterStep?.();
  }
  return { events, trainee, peakBytes: peakMemoryBytes() };
}

function randomExamples(count: number, length: number, vocabSize: number): Example[] {
  const rng = new Rng(0);
  return Array.from({ length: count }, (_, i) => ({
    ids: Int32Array.from({ length }, () => rng.below(vocabSize)),
    supervised: new Uint8Array(length).fill(1, 1), // the first token has none before it
    where: `random row ${i}`,
    tokens: length,
  }));
}
