import { Rng } from "../core/rng.js";
import { type Cost, SymbolicDevice } from "../core/symbolic.js";
import { differentiate } from "../core/tape.js";
import type { Row } from "../data/example.js";
import type { ComputeType } from "../engine/kernels.js";
import type { Task } from "../objectives/objective.js";
import { gradientSquares } from "../optim/clip.js";
import { type Parts, sketch, trainedName } from "../train/assemble.js";

export interface StepWork {
  /** What the model that trains is put together from. */
  readonly parts: Parts;
  readonly task: Task;
  /** The rows of the micro-batch with the most tokens. */
  readonly rows: readonly Row[];
  readonly compute: ComputeType;
}

/**
 * What one training step costs, found by running it on shapes: the same code as the real step, so it cannot drift from it. `peakBytes`
 * holds weights, gradients, optimizer state and activations at the highest point, loading included.
 */
export function estimateStep({ parts, task, rows, compute }: StepWork): Cost {
  const device = new SymbolicDevice(compute);
  const { base, parameters, optimizer } = sketch(device, parts);
  const { peakBytes: loadingPeak } = device.cost;
  device.reset();
  const batch = task.collate(rows);
  differentiate(() => base.with(trainedName, (model) => task.loss(model, batch)), new Rng(0)).dispose();
  gradientSquares(parameters.values()).dispose();
  optimizer.update(1e-4, 1);
  return { ...device.cost, peakBytes: Math.max(loadingPeak, device.cost.peakBytes) };
}

/**
 * What a process takes beside tensors and what it had before: packing buffers of the products, slack of the allocator, files read while loading,
 * JavaScript. With this constant, predictions for SmolLM2-135M were within 10 % of the measured peak (docs/benchmarks.md).
 */
export const overheadBytes = 128 * 2 ** 20;

/** A change of settings that would lower the need for memory. */
export interface Remedy {
  readonly change: string;
  readonly peakBytes: number;
}

/** How the rows of a micro-batch came together. */
export interface BatchShape {
  readonly batchSize: number;
  /** Rows fill `batchSize` bins of cutoff_len; otherwise there are `batchSize` rows. */
  readonly isPacked: boolean;
}

/** The smallest change, in the order of what it costs the user, that brings the need below `availableBytes`; undefined if none does. */
export function smallestRemedy(work: StepWork, { batchSize, isPacked }: BatchShape, availableBytes: number): Remedy | undefined {
  const halved = isPacked ? "cutoff_len" : "per_device_train_batch_size";
  const half = rowsOfShare(work.rows, 1 / 2);
  const one = rowsOfShare(work.rows, 1 / batchSize);
  const quarter = isPacked ? rowsOfShare(one, 1 / 4) : one.map((row) => work.task.shorten(row, Math.ceil(row.tokens / 4)));
  const checkpointed: StepWork = { ...work, parts: { ...work.parts, gradientCheckpointing: true } };
  const choices: [change: string, changed: StepWork][] = [
    ["gradient_checkpointing=true", checkpointed],
    [`half the ${halved}, twice the gradient_accumulation_steps`, { ...work, rows: half }],
    [`gradient_checkpointing=true and half the ${halved}`, { ...checkpointed, rows: half }],
    ["gradient_checkpointing=true and per_device_train_batch_size=1", { ...checkpointed, rows: one }],
    [
      "gradient_checkpointing=true, per_device_train_batch_size=1 and optim=adamw_8bit",
      { ...checkpointed, rows: one, parts: { ...checkpointed.parts, optimizer: { ...work.parts.optimizer, bits: 8 } } },
    ],
    [
      "gradient_checkpointing=true, per_device_train_batch_size=1 and a quarter of cutoff_len",
      { ...checkpointed, rows: quarter },
    ],
  ];
  for (const [change, changed] of choices) {
    const { peakBytes } = estimateStep(changed);
    if (peakBytes <= availableBytes) return { change, peakBytes };
  }
  return undefined;
}

/** The first rows that hold at least `share` of all tokens. */
function rowsOfShare(rows: readonly Row[], share: number): Row[] {
  const wanted = share * rows.reduce((sum, row) => sum + row.tokens, 0);
  const taken: Row[] = [];
  let tokens = 0;
  for (const row of rows) {
    if (tokens >= wanted) break;
    taken.push(row);
    tokens += row.tokens;
  }
  return taken;
}
