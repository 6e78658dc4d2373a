import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { CheckpointError, DivergedError, ModelError } from "../errors.js";
import { checkTensors } from "../io/adapters/adapter-folder.js";
import { publishFolder } from "../io/checkpoint.js";
import { namesIn, writeFileAtomic } from "../io/disk.js";
import {
  firstNonFinite,
  inPieces,
  openSafetensors,
  readEntry,
  type SafetensorsFile,
  type TensorSource,
  toTensorEntry,
  writeSafetensors,
} from "../io/safetensors.js";
import { parseJson } from "../io/strict-json.js";
import { setValues, sourceOf } from "../models/load.js";
import type { Metrics } from "../objectives/metrics.js";
import type { TaskState } from "../objectives/objective.js";
import { absmaxOf, mayBeBlocks } from "../optim/adamw.js";
import type { Optimizer } from "../optim/optimizer.js";
import type { Progress } from "./loop.js";

const optimizerName = "optimizer.safetensors";
const stateName = "training_state.json";

const MetricsSchema: z.ZodType<Metrics> = z.lazy(() => z.record(z.string(), z.union([z.number(), MetricsSchema])));

/** `training_state.json`: where a run stands, beside weights and moments. */
const TrainingState = z.strictObject({
  /** Identifies rows, their order and what a step is made of: a run may only go on with the same. */
  work: z.string(),
  /** When the run began: templates that write the date must write the same one again. */
  startedAt: z.iso.datetime(),
  optimizerSteps: z.int().min(0),
  /** What the task keeps from round to round. */
  task: z.unknown().optional(),
  progress: z.strictObject({
    step: z.int().min(0),
    epoch: z.number(),
    lossSum: z.number(),
    firstLoss: z.number().nullable().default(null),
    lastLoss: z.number().nullable().default(null),
    tokens: z.number(),
    supervisedTokens: z.number().nullable(),
    rows: z.number(),
    stepMs: z.number(),
    elapsedMs: z.number(),
    evalLoss: z.number().nullable(),
    metrics: MetricsSchema.nullable(),
    isEvaluationDue: z.boolean().default(false),
    best: z
      .strictObject({ step: z.int().min(0), score: z.number(), evalLoss: z.number(), metrics: MetricsSchema.nullable() })
      .nullable()
      .default(null),
    badEvaluations: z.int().min(0).default(0),
    isStoppedEarly: z.boolean().default(false),
  }),
});

export interface CheckpointContents {
  /** Writes what was trained, and whatever else belongs beside it, into the folder. */
  readonly writeModel: (folder: string) => Promise<void>;
  /** Null for a checkpoint of the model only: nothing can resume from it. */
  readonly optimizer: Optimizer | null;
  readonly progress: Progress;
  readonly work: string;
  readonly startedAt: Date;
  /** Of the task, where it keeps something from round to round. */
  readonly state?: TaskState | undefined;
}

/** Writes `checkpoint-N` aside, then publishes it whole. Throws NoSpaceError, DivergedError if a number is not finite. */
export async function saveCheckpoint(
  path: string,
  { writeModel, optimizer, progress, work, startedAt, state }: CheckpointContents,
): Promise<void> {
  await publishFolder(path, async (folder) => {
    await writeModel(folder);
    if (optimizer === null) return;
    await writeSafetensors(join(folder, optimizerName), keptBy(optimizer));
    await writeFileAtomic(
      join(folder, stateName),
      JSON.stringify({ work, startedAt, optimizerSteps: optimizer.step, progress, task: state?.save() }),
    );
  });
}

/** When the run that a checkpoint belongs to began. Throws CheckpointError if nothing can resume from it. */
export async function startOfRun(path: string): Promise<Date> {
  return new Date((await readState(path)).startedAt);
}

/**
 * Puts optimizer, progress and what the task keeps back to where a checkpoint left them; the model's own weights are loaded by whoever knows its format.
 * Throws CheckpointError if the checkpoint is of other work.
 */
export async function loadCheckpoint(
  path: string,
  optimizer: Optimizer,
  progress: Progress,
  work: string,
  taskState?: TaskState,
): Promise<void> {
  const state = await readState(path);
  if (state.work !== work)
    throw new CheckpointError(
      `${path}: was made with other data, batch size, accumulation, cut-off or seed, or with another reference; going on would repeat some rows and skip others. ` +
        "Restore these settings, or start anew with overwrite_output_dir=true",
    );
  const file = await openSafetensors(join(path, optimizerName));
  const expected = new Map([...optimizer.kept()].map(([name, { tensor }]) => [name, tensor]));
  checkKept(file, new Map([...expected].map(([name, { shape }]) => [name, shape])));
  for (const [name, tensor] of expected) setValues(tensor, await readEntry(toTensorEntry(file.tensors.get(name)!)), "f32");
  optimizer.step = state.optimizerSteps;
  Object.assign(progress, state.progress);
  if (state.task !== undefined) taskState?.load(state.task);
}

/** Throws CheckpointError if a checkpoint does not hold what the optimizer keeps. */
function checkKept({ path, tensors }: SafetensorsFile, expected: ReadonlyMap<string, readonly number[]>): void {
  try {
    checkTensors(path, expected, tensors);
  } catch (cause) {
    if (!(cause instanceof ModelError)) throw cause;
    throw new CheckpointError(
      `${path}: does not hold what this optimizer keeps: the checkpoint was made with another optim, or other parameters trained. Restore the settings, or ` +
        "start anew with overwrite_output_dir=true",
      { cause },
    );
  }
}

/**
 * Throws CheckpointError that names a tensor of a checkpoint if a number in it is not finite: whoever went on from it would get nothing else.
 * `keepsBlocks` is the optimizer's.
 */
export async function checkFinite(path: string, keepsBlocks: boolean): Promise<void> {
  for (const name of await namesIn(path)) {
    if (!name.endsWith(".safetensors")) continue;
    for (const stored of (await openSafetensors(join(path, name))).tensors.values()) {
      const entry = toTensorEntry(stored);
      const data = await readEntry(entry);
      const isBlocks = name === optimizerName && keepsBlocks && mayBeBlocks(entry.shape);
      if (firstNonFinite(isBlocks ? absmaxOf(data) : data, entry.dtype) >= 0)
        throw new CheckpointError(
          `${entry.file}: ${entry.name} holds a number that is not finite: training cannot go on from it.`,
        );
    }
  }
}

function keptBy(optimizer: Optimizer): TensorSource[] {
  return [...optimizer.kept()].map(([name, { tensor, isBlocks }]) => {
    const source = sourceOf(name, tensor);
    return isBlocks ? blocksOf(source) : source;
  });
}

/** Moments in 8 bits, of which only the absmax of each block is a number. */
function blocksOf(source: TensorSource): TensorSource {
  return {
    ...source,
    isOpaque: true,
    async *data() {
      for await (const rows of inPieces(source.data())) {
        if (firstNonFinite(absmaxOf(rows), "f32") >= 0)
          throw new DivergedError(`${source.name} of the optimizer is not finite: such a checkpoint is not written`);
        yield rows;
      }
    },
  };
}

async function readState(path: string): Promise<z.output<typeof TrainingState>> {
  const file = join(path, stateName);
  try {
    return TrainingState.parse(parseJson(await readFile(file, "utf8")));
  } catch (error) {
    const why = error instanceof z.ZodError ? z.prettifyError(error) : String(error);
    throw new CheckpointError(
      `${file}: cannot resume from here: ${why}. A checkpoint saved with save_only_model cannot be resumed`,
    );
  }
}
