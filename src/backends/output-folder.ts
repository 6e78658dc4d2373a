import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { CheckpointError } from "../errors.js";
import { newestCompleteCheckpoint, verifyFolder } from "../io/checkpoint.js";
import { momentBits } from "../optim/adamw.js";
import type { Recipe } from "../recipe/schema.js";
import { checkFinite } from "../train/checkpoint.js";
import { trainingWeightsName } from "../tuners/tuned-files.js";

interface Listeners {
  readonly onInfo: (message: string) => void;
  readonly onWarning: (message: string) => void;
}

/** How a run begins: from which checkpoint, and what of an earlier run must go once everything else is known to be well. */
export interface OutputPlan {
  readonly resumeFrom: string | null;
  readonly leftovers: readonly string[];
}

/** What an earlier run leaves in its folder, beside checkpoints. */
const runFiles = [
  "events.jsonl",
  "adapter_config.json",
  "adapter_model.safetensors",
  trainingWeightsName,
  "config.json",
  "model.safetensors",
];
const checkpointPattern = /^checkpoint-\d+$/;

/** Looks at the output folder, and changes nothing in it. Throws CheckpointError if it holds a run that is not to be touched. */
export async function planOutput(recipe: Recipe, { onInfo, onWarning }: Listeners): Promise<OutputPlan> {
  const { output_dir: outputDir, resume_from_checkpoint: resume, overwrite_output_dir: overwrite } = recipe;
  const check = (path: string) => checkFinite(path, momentBits[recipe.optim]);
  if (typeof resume === "string") {
    await verifyFolder(resume);
    await check(resume);
    return { resumeFrom: resume, leftovers: [] };
  }
  if (resume) {
    const newest = await newestCompleteCheckpoint(outputDir, { onWarning, check });
    if (newest === undefined) onInfo(`${outputDir} holds no complete checkpoint: the run starts from the beginning`);
    return { resumeFrom: newest?.path ?? null, leftovers: [] };
  }
  const names = await readdir(outputDir);
  const earlier = names.filter((name) => runFiles.includes(name) || checkpointPattern.test(name));
  if (earlier.length > 0 && !overwrite)
    throw new CheckpointError(
      `${outputDir} holds another run (${earlier.slice(0, 3).join(", ")}). Go on with it by resume_from_checkpoint=true, replace it by ` +
        "overwrite_output_dir=true, or choose another output_dir",
    );
  return { resumeFrom: null, leftovers: earlier.map((name) => join(outputDir, name)) };
}

export async function removeLeftovers({ leftovers }: OutputPlan): Promise<void> {
  for (const path of leftovers) await rm(path, { recursive: true, force: true });
}
