import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { CheckpointError } from "../errors.js";
import { namesIn, sha256OfFile, systemErrorCode, writeFileAtomic } from "../io/disk.js";
import { parseJson } from "../io/strict-json.js";

export const pipelineRecordName = "pipeline.json";

const StageRecord = z.strictObject({
  /** Also of its folder. */
  name: z.string().regex(/^\d+-[\w-]+$/),
  state: z.enum(["waiting", "begun", "done"]),
  /** When it was begun first: what its folder tells of an earlier time is of another run. */
  begunAt: z.iso.datetime().nullable(),
  /** Whether later stages begin from what it makes. */
  isPolicy: z.boolean(),
  /** sha256 of each file of weights that it left; null until it is done. */
  weights: z.record(z.string(), z.string()).nullable(),
});

/** `pipeline.json`: how far the stages of a pipeline have come. */
const PipelineRecord = z.strictObject({ pipeline: z.literal(1), stages: z.array(StageRecord).min(1) });

export type StageRecord = z.output<typeof StageRecord>;
export type PipelineRecord = z.output<typeof PipelineRecord>;

/** Null where a folder is not that of a pipeline. Throws CheckpointError for a file that cannot be read. */
export async function readPipelineRecord(outputDir: string): Promise<PipelineRecord | null> {
  const path = join(outputDir, pipelineRecordName);
  try {
    return PipelineRecord.parse(parseJson(await readFile(path, "utf8")));
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes(systemErrorCode(error) ?? "")) return null;
    const why = error instanceof z.ZodError ? z.prettifyError(error) : String(error);
    throw new CheckpointError(`${path}: cannot be read: ${why}. Begin anew in another output_dir`);
  }
}

/** Throws NoSpaceError. */
export async function writePipelineRecord(outputDir: string, stages: readonly StageRecord[]): Promise<void> {
  await writeFileAtomic(join(outputDir, pipelineRecordName), `${JSON.stringify({ pipeline: 1, stages }, null, 2)}\n`);
}

/** sha256 of each file of weights in a folder. */
export async function weightsIn(folder: string): Promise<Record<string, string>> {
  const names = (await namesIn(folder)).filter((name) => name.endsWith(".safetensors")).sort();
  const entries: [string, string][] = [];
  for (const name of names) entries.push([name, await sha256OfFile(join(folder, name))]);
  return Object.fromEntries(entries);
}

/** The folder of the last policy that a pipeline has made: what its own folder stands for once all stages are done. */
export type PipelineResult =
  | { readonly folder: string; readonly unfinished?: never }
  | { readonly unfinished: string; readonly policy: string | null };

/** What a pipeline's folder stands for; null if it is none. Throws CheckpointError. */
export async function resultOfPipeline(outputDir: string): Promise<PipelineResult | null> {
  const record = await readPipelineRecord(outputDir);
  if (record === null) return null;
  const unfinished = record.stages.find(({ state }) => state !== "done");
  const policy = record.stages.findLast(({ state, isPolicy }) => state === "done" && isPolicy);
  const folder = policy === undefined ? null : join(outputDir, policy.name);
  if (unfinished !== undefined) return { unfinished: unfinished.name, policy: folder };
  return folder === null ? { unfinished: record.stages[0]!.name, policy: null } : { folder };
}
