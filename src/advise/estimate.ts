import { type Cost, type KernelCost, SymbolicDevice } from "../core/symbolic.js";
import type { Row } from "../data/example.js";
import type { ComputeType } from "../engine/kernels.js";
import { evaluate } from "../evaluate/evaluate.js";
import { type Decoding, decodeOnShapes } from "../generate/decode-on-shapes.js";
import type { Batch, Task } from "../objectives/objective.js";
import { type OptimizerName, optimizerNamed } from "../optim/optimizers.js";
import { type Parts, sketch, trainedName } from "../train/assemble.js";
import { namesOf } from "../train/best.js";
import { runStep } from "../train/step.js";
import type { SharedBase } from "../tuners/shared-base.js";

export interface StepWork<R extends Row = Row, B extends Batch = Batch> {
  /** What the model that trains is put together from. */
  readonly parts: Parts;
  readonly task: Task<R, B>;
  /** The rows of the micro-batch with the most tokens, and how many micro-batches a step has. */
  readonly rows: readonly R[];
  readonly accumulationSteps: number;
  /** The rows of the held-out batch with the most tokens; none where nothing is evaluated. */
  readonly evalRows: readonly R[];
  readonly compute: ComputeType;
  /** What is answered once training has ended. */
  readonly predicts?: Decoding | null;
  /** Another model that is asked beside the one that trains, or about every row before it is made: a reference. */
  readonly other?: Other;
}

interface Other {
  open(device: SymbolicDevice): Promise<SharedBase>;
  readonly isAskedOnce: boolean;
}

/** What work costs whose every micro-batch is the largest. */
export interface StepCost extends Cost {
  /** Tokens of a whole step, to which FLOPs and bytes moved belong. */
  readonly tokens: number;
  /** What an evaluation measures, by name; null where nothing is evaluated. */
  readonly measures: readonly string[] | null;
}

/**
 * What training costs, found by taking a step on shapes: `runStep` and `evaluate` themselves, so it cannot drift from them. `peakBytes`
 * holds weights, gradients, optimizer state and activations at the highest point, loading and evaluation included; the rest is of the step alone.
 */
export async function estimateStep<R extends Row, B extends Batch>(work: StepWork<R, B>): Promise<StepCost> {
  const { task, accumulationSteps, other } = work;
  const asked = other?.isAskedOnce ? await askOnShapes(work, other) : null;
  const { rows, evalRows } = asked ?? work;
  const device = new SymbolicDevice(work.compute);
  const trainee = sketch(device, work.parts);
  if (other?.isAskedOnce === false) trainee.base.setReference(await other.open(device));
  const peaks = [...(asked?.peaks ?? []), device.cost];
  const decode = async (decoding: Decoding) => {
    device.reset();
    await decodeOnShapes(trainee.base, trainedName, decoding);
    peaks.push(device.cost);
  };
  const { decodes } = task;
  if (decodes !== undefined) {
    const ofRound = Array<readonly R[]>(accumulationSteps * (task.bufferSize ?? 1))
      .fill(rows)
      .flat();
    await decode({ ...decodes, prompts: ofRound.map(decodes.promptOf) });
    await decode({ ...decodes, count: 1, prompts: evalRows.map(decodes.promptOf) });
  }
  const take = async (microBatches: number): Promise<Cost> => {
    device.reset();
    await runStep(trainee, task, Array<readonly R[]>(microBatches).fill(rows), anyStep);
    peaks.push(device.cost);
    return device.cost;
  };
  let cost = await take(1);
  // From the second micro-batch on, gradients stand already: each of these is like the second.
  if (accumulationSteps > 1) cost = extrapolated(cost, await take(2), accumulationSteps);
  device.reset();
  const evaluated =
    evalRows.length > 0 ? await evaluate(trainee.base, trainedName, task, evalRows, { batchSize: evalRows.length }) : null;
  peaks.push(device.cost);
  if (work.predicts) await decode(work.predicts);
  return {
    ...cost,
    measures: evaluated && namesOf(evaluated.metrics),
    tokens: accumulationSteps * rows.reduce((sum, { tokens }) => sum + tokens, 0),
    peakBytes: Math.max(...peaks.map(({ peakBytes }) => peakBytes)),
    residentBytes:
      Math.max(...peaks.map(({ residentBytes }) => residentBytes)) +
      (decodes !== undefined || work.predicts ? decodingBytes : 0) +
      (work.predicts ? dictionaryBytes : 0),
  };
}

/** The rows with what another model says of them, which is gone when training begins, and what asking it cost. */
async function askOnShapes<R extends Row, B extends Batch>({ task, rows, evalRows, compute }: StepWork<R, B>, other: Other) {
  const device = new SymbolicDevice(compute);
  const base = await other.open(device);
  const at = { signal: new AbortController().signal, onRows: () => {} };
  const ask = async (about: readonly R[]) => await task.keepReference!(about, (body) => base.withReference(body), at);
  return { rows: await ask(rows), evalRows: evalRows.length === 0 ? [] : await ask(evalRows), peaks: [device.cost] };
}

/** Neither dropout nor rates change what a step costs. */
const anyStep = { step: 0, seed: 0, learningRate: 1e-4, peakLearningRate: 1e-4, maxGradNorm: 1 };

/** The cost of so many micro-batches, from those of one and of two. */
function extrapolated(one: Cost, two: Cost, count: number): Cost {
  const line = (a: number, b: number) => a + (count - 1) * (b - a);
  const byKernel = [...two.byKernel].map(([name, b]): [string, KernelCost] => {
    const { flops, bytesMoved } = one.byKernel.get(name) ?? { flops: 0, bytesMoved: 0 };
    return [name, { flops: line(flops, b.flops), bytesMoved: line(bytesMoved, b.bytesMoved) }];
  });
  return {
    ...two,
    flops: line(one.flops, two.flops),
    bytesMoved: line(one.bytesMoved, two.bytesMoved),
    byKernel: new Map(byKernel),
  };
}

/**
 * What a process takes beside what its engine does and what it had before: JavaScript's heap and code, which grow by 3 to 15 MB while it trains,
 * and the buffers of pieces between files and engine (docs/benchmarks.md).
 */
export const overheadBytes = 8 * 2 ** 20;

/** What JavaScript's heap takes more where a process decodes: between two collections of it, tokens leave more behind than steps do (docs/benchmarks.md). */
const decodingBytes = 24 * 2 ** 20;

/** The dictionary of jieba, which compares answers with what was wanted. */
const dictionaryBytes = 78e6;

/** A change of settings that would lower the need for memory. */
export interface Remedy {
  /** As a recipe would say it. */
  readonly change: string;
  readonly peakBytes: number;
}

/** What decides which rows come together. */
export interface BatchShape {
  /** Rows of a micro-batch; or, packed, bins of `cutoffLen` tokens, which rows fill. */
  readonly batchSize: number;
  readonly isPacked: boolean;
  readonly cutoffLen: number;
}

/** The batches that need the most memory. */
export type LargestBatches = Pick<StepWork, "rows" | "evalRows">;

/**
 * The smallest change, in the order of what it costs the user, that brings the need below `availableBytes`; undefined if none does. Where batches
 * become smaller, a step takes more of them, so that it trains on as many rows. `batchesOf` says which batches another shape brings about.
 */
export async function smallestRemedy(
  work: StepWork,
  shape: BatchShape,
  batchesOf: (shape: BatchShape) => LargestBatches,
  availableBytes: number,
): Promise<Remedy | undefined> {
  const { batchSize, isPacked } = shape;
  const longest = isPacked ? shape.cutoffLen : work.rows.reduce((most, { tokens }) => Math.max(most, tokens), 0);
  const checkpointing: Changes = { gradient_checkpointing: true };
  const half = { per_device_train_batch_size: Math.ceil(batchSize / 2) };
  const least: Changes = { ...checkpointing, per_device_train_batch_size: 1 };
  const { smaller } = optimizerNamed(work.parts.optimizer.name);
  const choices: Changes[] = [
    checkpointing,
    ...(batchSize > 1 ? [half, { ...checkpointing, ...half }] : []),
    least,
    ...(smaller === undefined ? [] : [{ ...least, optim: smaller as OptimizerName }]),
    { ...least, cutoff_len: Math.ceil(longest / 2) },
    { ...least, cutoff_len: Math.ceil(longest / 4) },
  ];
  for (const choice of choices) {
    const { per_device_train_batch_size: size = batchSize, cutoff_len: cutoffLen = shape.cutoffLen } = choice;
    const accumulationSteps = work.accumulationSteps * Math.ceil(batchSize / size);
    const { peakBytes } = await estimateStep({
      ...{ ...work, ...batchesOf({ ...shape, batchSize: size, cutoffLen }), accumulationSteps },
      parts: changed(work.parts, choice),
    });
    if (peakBytes > availableBytes) continue;
    const told = { ...choice, ...(size < batchSize && { gradient_accumulation_steps: accumulationSteps }) };
    return { change: inWords(told), peakBytes };
  }
  return undefined;
}

/** Settings of a recipe that differ from the user's. */
interface Changes {
  readonly gradient_checkpointing?: true;
  readonly per_device_train_batch_size?: number;
  readonly optim?: OptimizerName;
  readonly cutoff_len?: number;
}

function changed({ gradientCheckpointing, optimizer, ...parts }: Parts, { gradient_checkpointing, optim }: Changes): Parts {
  return {
    ...parts,
    gradientCheckpointing: gradient_checkpointing ?? gradientCheckpointing,
    optimizer: optim === undefined ? optimizer : { ...optimizer, name: optim },
  };
}

const inWords = (changes: object) =>
  Object.entries(changes)
    .map(([key, value]) => `${key}=${value}`)
    .join(", ");
