import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { CheckpointError } from "../errors.js";
import { newestCompleteCheckpoint, verifyFolder } from "../io/checkpoint.js";
import type { Recipe } from "../recipe/schema.js";
import { trainingWeightsName } from "../tuners/tuned-files.js";
import { eventsPath, readEvents } from "./events-file.js";
import { pipelineRecordName } from "./pipeline-record.js";

/** What a run leaves in its folder, beside its events, or a pipeline in its own. */
const resultNames = [
  pipelineRecordName,
  "adapter_config.json",
  "adapter_model.safetensors",
  trainingWeightsName,
  "config.json",
  "model.safetensors",
];
const checkpointPattern = /^checkpoint-\d+$/;

/**
 * What an earlier run left in an output folder and a new one has to remove: nothing if it goes on with it. Changes nothing. A run that never
 * came to its first step left nothing; what is named in `own` is no leftover. Throws CheckpointError if there is something, and the recipe does not say what to do with it.
 */
export async function leftoversIn(
  recipe: Pick<Recipe, "output_dir" | "resume_from_checkpoint" | "overwrite_output_dir">,
  own: readonly string[] = [],
): Promise<readonly string[]> {
  const { output_dir: outputDir, resume_from_checkpoint: resume, overwrite_output_dir: overwrite } = recipe;
  if (resume !== false) return [];
  const names = (await readdir(outputDir)).filter(
    (name) => !own.includes(name) && (resultNames.includes(name) || checkpointPattern.test(name)),
  );
  const traces = [...((await hasStarted(outputDir)) ? ["events.jsonl"] : []), ...names];
  if (traces.length > 0 && !overwrite)
    throw new CheckpointError(
      `${outputDir} holds another run (${traces.slice(0, 3).join(", ")}). Go on with it by resume_from_checkpoint=true, replace it by ` +
        "overwrite_output_dir=true, or choose another output_dir",
    );
  return names.map((name) => join(outputDir, name));
}

async function hasStarted(outputDir: string): Promise<boolean> {
  for await (const { type } of readEvents(eventsPath(outputDir))) if (type === "start") return true;
  return false;
}

export interface ResumeOptions {
  /** Throws CheckpointError if a checkpoint, whole as it is, is nothing to go on from. */
  readonly check: (path: string) => Promise<void>;
  readonly onInfo: (message: string) => void;
  readonly onWarning: (message: string) => void;
}

/**
 * The checkpoint that a run goes on from: the one that the recipe names, or the newest good one in its folder; null where it starts from the
 * beginning. Throws CheckpointError if the one that is named is not good.
 */
export async function checkpointToResume(recipe: Recipe, { check, onInfo, onWarning }: ResumeOptions): Promise<string | null> {
  const { output_dir: outputDir, resume_from_checkpoint: resume } = recipe;
  if (resume === false) return null;
  if (typeof resume === "string") {
    await verifyFolder(resume);
    await check(resume);
    return resume;
  }
  const newest = await newestCompleteCheckpoint(outputDir, { onWarning, check });
  if (newest === undefined) onInfo(`${outputDir} holds no complete checkpoint: the run starts from the beginning`);
  return newest?.path ?? null;
}
