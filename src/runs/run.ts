import { hostname } from "node:os";
import { AttuneError, InterruptedError } from "../errors.js";
import { folderError } from "../io/disk.js";
import type { Lock } from "../io/lock.js";
import type { Recipe } from "../recipe/schema.js";
import type { RewardFunctions } from "../rewards/functions.js";
import { during } from "./during.js";
import { checkpointToResume, leftoversIn } from "./earlier-run.js";
import type { FailedEvent, NoticeEvent, RecordedEvent, RunEvent, RunSubject } from "./events.js";
import { RunFolder } from "./run-folder.js";
import { lockFolder } from "./run-lock.js";

export interface RunOptions {
  /** Ends the run after the step that is under way; what was trained is saved. */
  readonly signal: AbortSignal;
  /** What reading the recipe had to say. */
  readonly notices?: readonly string[];
  /** Functions of the program that trains, by the names that rewards of the recipe have. */
  readonly rewardFunctions?: RewardFunctions;
}

/** What a backend gets beside the recipe. */
export interface RunContext<Config = unknown> {
  /** The backend's own settings. */
  readonly config: Config;
  readonly signal: AbortSignal;
  readonly rewardFunctions: RewardFunctions;
  /** The checkpoint to go on from, whole and checked; null for a run from the beginning. */
  readonly resumeFrom: string | null;
  /** trainer_state.json as of the last event, to lie in a checkpoint of that path. */
  trainerState(checkpoint: string): string;
}

/** What a backend gets to check a recipe with. */
export type CheckContext = Pick<RunContext, "signal" | "rewardFunctions">;

/** Does the work of a run: a backend. It yields `start` once its first step can be taken, and `end` last. */
export interface Executor {
  /** Throws CheckpointError if a checkpoint, whole as it is, is nothing that it can go on from. */
  checkCheckpoint?(path: string, recipe: Recipe): Promise<void>;
  /** Throws what would end a run before its first step, as far as it is known before anything trains. Yields how far a download has come. */
  check?(recipe: Recipe, context: CheckContext): AsyncIterable<RunEvent>;
  run(recipe: Recipe, context: RunContext): AsyncIterable<RunEvent>;
}

/**
 * A run from its first word to its last: holds the folder's lock, records every event before it passes it on, and tells by an event how the run
 * failed before it throws that. A folder that another process holds, or that holds another run, is not touched.
 * Throws what the executor throws, CheckpointError and NoSpaceError.
 */
export async function* recordRun(recipe: Recipe, executor: Executor, options: RunOptions): AsyncGenerator<RecordedEvent> {
  let lock: Lock | undefined;
  let folder: RunFolder | undefined;
  try {
    lock = await lockFolder(recipe.output_dir);
    folder = await RunFolder.open(recipe, await leftoversIn(recipe));
    for await (const event of eventsOf(recipe, executor, options, { lock, folder })) yield* await folder.write(event);
    await folder.flush();
  } catch (cause) {
    const error = wasStopped(cause, options.signal)
      ? new InterruptedError("stopped before the first step: nothing was trained, and there is nothing to save")
      : await folderError(recipe.output_dir, cause);
    const failed = failedEvent(error);
    yield folder ? await folder.fail(failed) : { ...failed, time: new Date().toISOString() };
    throw error;
  } finally {
    await folder?.close();
    await lock?.release();
  }
}

interface Place {
  readonly lock: Lock;
  readonly folder: RunFolder;
}

async function* eventsOf(
  recipe: Recipe,
  executor: Executor,
  { signal, notices = [], rewardFunctions = {} }: RunOptions,
  { lock, folder }: Place,
): AsyncGenerator<RunEvent> {
  yield { type: "prepare", ...subjectOf(recipe), pid: process.pid, host: hostname(), lock: lock.id };
  for (const message of notices) yield info(message);
  const resumeFrom = yield* during<RunEvent, string | null>((emit) =>
    checkpointToResume(recipe, {
      check: async (path) => await executor.checkCheckpoint?.(path, recipe),
      onInfo: (message) => emit(info(message)),
      onWarning: (message) => emit({ type: "notice", level: "warning", message }),
    }),
  );
  yield* executor.run(recipe, {
    config: recipe.backendConfig,
    signal,
    rewardFunctions,
    resumeFrom,
    trainerState: (checkpoint) => folder.trainerState(checkpoint),
  });
}

/**
 * Tells whoever looks at the recipe's folder that the run waits for somebody to begin it. Throws CheckpointError if the folder is in use, or
 * holds another run and the recipe does not say what to do with it; NoSpaceError.
 */
export async function queueRun(recipe: Recipe): Promise<void> {
  const lock = await lockFolder(recipe.output_dir);
  try {
    const folder = await RunFolder.open(recipe, await leftoversIn(recipe));
    try {
      await folder.write({ type: "queued", ...subjectOf(recipe) });
      await folder.flush();
    } finally {
      await folder.close();
    }
  } catch (error) {
    throw await folderError(recipe.output_dir, error);
  } finally {
    await lock.release();
  }
}

function subjectOf({ output_dir, model_name_or_path, finetuning_type, stage, backend }: Recipe): RunSubject {
  return { outputDir: output_dir, model: model_name_or_path, method: finetuning_type, objective: stage, backend };
}

function info(message: string): NoticeEvent {
  return { type: "notice", level: "info", message };
}

/** Whatever waits for the signal, such as a download, throws its reason. */
function wasStopped(error: unknown, signal: AbortSignal): boolean {
  return signal.aborted && (error === signal.reason || (error instanceof Error && error.name === "AbortError"));
}

function failedEvent(error: unknown): FailedEvent {
  const message = error instanceof Error ? error.message : String(error);
  return { type: "failed", code: error instanceof AttuneError ? error.code : "bug", message };
}
