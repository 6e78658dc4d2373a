import { existsSync } from "node:fs";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { parse } from "yaml";
import { AttuneError, CheckpointError } from "../errors.js";
import { folderError, namesIn, writeFileAtomic } from "../io/disk.js";
import { formatRecipe } from "../recipe/parse.js";
import { formatPipeline, type Pipeline, type Stage } from "../recipe/pipeline.js";
import type { Recipe } from "../recipe/schema.js";
import { leftoversIn } from "./earlier-run.js";
import type { NoticeEvent, RecordedEvent, RunEvent } from "./events.js";
import { eventsPath, readEvents } from "./events-file.js";
import { pipelineRecordName, readPipelineRecord, type StageRecord, weightsIn, writePipelineRecord } from "./pipeline-record.js";
import type { RunOptions } from "./run.js";
import { lockFolder } from "./run-lock.js";
import { readRun } from "./status.js";

/** Who does the work of a stage. */
export interface StageWorker {
  /** Runs one recipe and records it in its folder: `recordRun`, with a backend. */
  run(recipe: Recipe, options: RunOptions): AsyncIterable<RecordedEvent>;
  /** As `Executor.check`. */
  check(recipe: Recipe): AsyncIterable<RunEvent>;
}

/**
 * The stages of a pipeline, one after the other: each a run with a folder of its own in `output_dir`, whose events are passed on with the stage's name
 * after a `stage` event. `pipeline.json` says how far it has come, and what weights each stage left. A pipeline that resumes passes over stages that are
 * done, goes on inside the one that was stopped, and then with the next; so it makes what one without a stop would have made, bit by bit.
 *
 * Before the first begins, later stages are checked as far as that is possible. Throws what a run throws, and CheckpointError where the folder holds something else, or where what a stage saved is no longer what it was.
 */
export async function* recordPipeline(
  pipeline: Pipeline,
  worker: StageWorker,
  options: RunOptions,
): AsyncGenerator<RecordedEvent> {
  const { outputDir, stages } = pipeline;
  const lock = await lockFolder(outputDir);
  try {
    const leftovers = await checkFolder(pipeline);
    const records = await recordsOf(pipeline);
    for (const [i, stage] of stages.entries()) if (i > 0 && records[i]!.state === "waiting") yield* checkAhead(stage, worker);
    await writeFileAtomic(join(outputDir, "recipe.yaml"), formatPipeline(pipeline));
    await writePipelineRecord(outputDir, records);
    let { notices = [] } = options;
    for (const [i, stage] of stages.entries()) {
      const record = records[i]!;
      const about = { type: "stage", name: stage.name, number: i + 1, of: stages.length, ...subjectOf(stage) } as const;
      if (record.state !== "done" && (await isDone(stage, record))) await finish(pipeline, records, i); // the record was not written any more
      if (record.state === "done") {
        yield stamped({ ...about, isDone: true }, stage);
        for (const event of await checkDone(stage, record)) yield stamped(event, stage);
        if (i === stages.length - 1) for await (const event of lastWord(stage)) yield { ...event, stage: stage.name };
        continue;
      }
      const isGoneOn = record.state === "begun" && (await hasStarted(stage, record));
      const isNew = record.state === "waiting";
      if (isNew) Object.assign(record, { state: "begun", begunAt: new Date().toISOString() });
      await writePipelineRecord(outputDir, records);
      yield stamped({ ...about, isDone: false }, stage);
      const recipe = {
        ...stage.recipe,
        resume_from_checkpoint: isGoneOn,
        overwrite_output_dir: !isGoneOn && (pipeline.overwrite || !isNew), // what is there is from before it was begun
      };
      let isInterrupted = false;
      for await (const event of worker.run(recipe, { ...options, notices })) {
        if (event.type === "start") for (const path of leftovers.splice(0)) await rm(path, { recursive: true, force: true });
        isInterrupted = event.type === "end" && event.interrupted;
        yield { ...event, stage: stage.name };
      }
      notices = [];
      if (isInterrupted) return;
      await finish(pipeline, records, i);
    }
  } catch (error) {
    throw await folderError(outputDir, error);
  } finally {
    await lock.release();
  }
}

/** Throws, with the stage's name, what would end it before its first step. */
async function* checkAhead(stage: Stage, worker: StageWorker): AsyncGenerator<RecordedEvent> {
  try {
    for await (const event of worker.check(stage.draft)) if (event.type === "progress") yield stamped(event, stage);
  } catch (error) {
    if (error instanceof AttuneError) error.message = `stage ${stage.name}: ${error.message}`;
    throw error;
  }
}

function subjectOf({ recipe: { stage, output_dir } }: Stage) {
  return { objective: stage, outputDir: output_dir };
}

function stamped(event: RunEvent, { name }: Stage): RecordedEvent {
  return { ...event, stage: name, time: new Date().toISOString() };
}

/** A stage is done when its run has said so since it was begun. */
async function isDone({ recipe }: Stage, { state, begunAt }: StageRecord): Promise<boolean> {
  if (state !== "begun") return false;
  const status = await readRun(recipe.output_dir);
  return status !== null && status.state === "done" && status.updatedAt >= begunAt!;
}

/** Whether the run took a step, or could have, since its stage was begun. */
async function hasStarted({ recipe }: Stage, { begunAt }: StageRecord): Promise<boolean> {
  for await (const { type, time } of readEvents(eventsPath(recipe.output_dir)))
    if (type === "start" && time >= begunAt!) return true;
  return false;
}

/** The end of a stage that is done, for whoever asks what came of it all. */
async function* lastWord({ recipe }: Stage): AsyncGenerator<RecordedEvent> {
  let end: RecordedEvent | undefined;
  for await (const event of readEvents(eventsPath(recipe.output_dir))) if (event.type === "end") end = event;
  if (end !== undefined) yield end;
}

async function finish({ outputDir, stages }: Pipeline, records: StageRecord[], i: number): Promise<void> {
  Object.assign(records[i]!, { state: "done", weights: await weightsIn(stages[i]!.recipe.output_dir) });
  await writePipelineRecord(outputDir, records);
}

/** Checks that a stage left what it says, and tells of settings that have changed since. Throws CheckpointError. */
async function checkDone({ name, recipe }: Stage, { weights }: StageRecord): Promise<NoticeEvent[]> {
  const found = await weightsIn(recipe.output_dir);
  const changed = Object.entries(weights ?? {}).find(([file, hash]) => found[file] !== hash);
  if (changed !== undefined)
    throw new CheckpointError(
      `${join(recipe.output_dir, changed[0])}: ${changed[0] in found ? "is not" : "is gone,"} what stage ${name} saved, and the stages after it begin from that: ` +
        "put it back, or begin anew with overwrite_output_dir=true",
    );
  const path = join(recipe.output_dir, "recipe.yaml");
  if (!existsSync(path)) return [];
  const [before, now] = [await readFile(path, "utf8"), formatRecipe(recipe)].map(
    (text) => parse(text) as Record<string, unknown>,
  );
  const keys = new Set([...Object.keys(before!), ...Object.keys(now!)]);
  const others = [...keys].filter((key) => JSON.stringify(before![key]) !== JSON.stringify(now![key]));
  if (others.length === 0) return [];
  const message = `stage ${name} is done, and stays as it was trained, with another ${others.join(", ")} than the recipe has now`;
  return [{ type: "notice", level: "warning", message }];
}

/** How far the stages have come: those of the folder's record if it goes on, else from the beginning. */
async function recordsOf({ outputDir, resume, stages }: Pipeline): Promise<StageRecord[]> {
  const before = resume ? ((await readPipelineRecord(outputDir))?.stages ?? []) : [];
  let isSame = true;
  return stages.map(({ name, isPolicy }, i) => {
    isSame &&= before[i]?.name === name;
    const known = isSame ? before[i]! : { state: "waiting" as const, begunAt: null, weights: null };
    return { ...known, name, isPolicy };
  });
}

/**
 * What an earlier run left beside the stages, to be removed once the first begins. Throws CheckpointError if the folder holds what the recipe does not
 * say what to do with: another run or pipeline, or stages that this one did not begin.
 */
async function checkFolder(pipeline: Pipeline): Promise<string[]> {
  const { outputDir, resume, overwrite, stages } = pipeline;
  const settings = { output_dir: outputDir, overwrite_output_dir: overwrite, resume_from_checkpoint: false } as const;
  const record = await readPipelineRecord(outputDir);
  const own = await leftoversIn(settings, [pipelineRecordName]);
  if (overwrite) return existsSync(eventsPath(outputDir)) ? [...own, eventsPath(outputDir)] : [...own];
  const records = await recordsOf(pipeline);
  if (record !== null && !resume && record.stages.some(({ state }) => state !== "waiting"))
    throw new CheckpointError(
      `${outputDir} holds another pipeline (${record.stages.map(({ name }) => name).join(", ")}). Go on with it by resume_from_checkpoint=true, replace it by ` +
        "overwrite_output_dir=true, or choose another output_dir",
    );
  for (const [i, { recipe }] of stages.entries()) {
    if (records[i]!.state !== "waiting" || (await namesIn(recipe.output_dir)).length === 0) continue;
    await leftoversIn({ ...settings, output_dir: recipe.output_dir });
  }
  return [];
}
