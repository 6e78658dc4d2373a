import { join } from "node:path";
import type { FailedEvent, RecordedEvent, RunSubject } from "./events.js";
import { eventsPath, readEvents } from "./events-file.js";
import { type PipelineRecord, readPipelineRecord } from "./pipeline-record.js";
import { lockOf } from "./run-lock.js";

/** Where a run stands. */
export type RunState = "queued" | "preparing" | "running" | "interrupted" | "failed" | "done";

/** Where a run stands, as its folder tells it. */
export interface RunStatus extends RunSubject {
  /** `interrupted`: stopped by its user, or by whatever ended its process; `resume_from_checkpoint=true` goes on with it. */
  readonly state: RunState;
  /** Finished optimizer steps, of how many; null until these are known. */
  readonly step: number;
  readonly totalSteps: number | null;
  /** Of the last step and of the last evaluation. */
  readonly loss: number | null;
  readonly evalLoss: number | null;
  readonly remainingMs: number | null;
  /** It ended before its last step, as evaluations no longer got better. */
  readonly stoppedEarly: boolean;
  /** Why it failed. */
  readonly error: Pick<FailedEvent, "code" | "message"> | null;
  /** The process that began it last; `isAlive` is null where that is another host's, so that nobody here can tell. */
  readonly process: { readonly pid: number; readonly host: string; readonly isAlive: boolean | null } | null;
  /** Time of the last event. */
  readonly updatedAt: string;
  /** Of a pipeline: the stage that all else is about, the last that was begun. */
  readonly stage?: { readonly name: string; readonly number: number; readonly of: number };
}

/**
 * Reads where a run, or a pipeline, stands from its folder alone, at any moment, from any process. Null if the folder holds none that has said anything.
 * Throws CheckpointError if the record of a pipeline cannot be read.
 *
 * Of a run without a last word the lock tells whether it is still at work: its process holds it until it ends, however it does. The lock is read
 * before the events, as a run writes its last word before it lets go.
 */
export async function readRun(outputDir: string): Promise<RunStatus | null> {
  const pipeline = await readPipelineRecord(outputDir);
  return pipeline === null ? await readOne(outputDir) : await readPipeline(outputDir, pipeline);
}

/** A pipeline is done when all its stages are; between two of them, its lock tells whether somebody goes on. */
async function readPipeline(outputDir: string, { stages }: PipelineRecord): Promise<RunStatus | null> {
  const lock = await lockOf(outputDir);
  for (const [i, { name, state }] of [...stages.entries()].reverse()) {
    const status = state === "waiting" ? null : await readOne(join(outputDir, name));
    if (status === null) continue;
    const told = { ...status, stage: { name, number: i + 1, of: stages.length } };
    if (status.state !== "done" || stages.every((stage) => stage.state === "done")) return told;
    return { ...told, state: lock !== undefined && lock.isAlive !== false ? "preparing" : "interrupted" };
  }
  return null;
}

async function readOne(outputDir: string): Promise<RunStatus | null> {
  for (;;) {
    const lock = await lockOf(outputDir);
    const told = await toldBy(readEvents(eventsPath(outputDir)));
    if (told === null) return null;
    const { lock: id, process, ...status } = told;
    const isHolder = lock !== undefined && lock.id === id;
    const isAlive = isHolder ? lock.isAlive : false;
    const seen = { ...status, process: process && { ...process, isAlive } };
    if ((status.state !== "preparing" && status.state !== "running") || isAlive !== false) return seen;
    if ((await lockOf(outputDir))?.id === lock?.id) return { ...seen, state: "interrupted", remainingMs: null };
    // Somebody came, or went, while the events were read.
  }
}

type Told = { -readonly [K in keyof RunStatus]: RunStatus[K] } & { lock: string | null };

async function toldBy(events: AsyncIterable<RecordedEvent>): Promise<Told | null> {
  let status: Told | null = null;
  for await (const event of events) status = next(status, event);
  return status;
}

/** What is known of a run after one more event. */
function next(status: Told | null, event: RecordedEvent): Told | null {
  if (event.type === "queued" || event.type === "prepare") return begun(event);
  if (status === null) return null;
  status.updatedAt = event.time;
  switch (event.type) {
    case "start":
      status.state = "running";
      status.step = event.resumedFromStep;
      status.totalSteps = event.totalSteps;
      break;
    case "step":
      status.step = event.step;
      status.loss = event.loss;
      status.remainingMs = event.remainingMs;
      break;
    case "eval":
      status.evalLoss = event.evalLoss;
      break;
    case "end":
      status.state = event.interrupted ? "interrupted" : "done";
      status.stoppedEarly = event.stoppedEarly === true;
      status.remainingMs = null;
      break;
    case "failed":
      status.state = event.code === "INTERRUPTED" ? "interrupted" : "failed";
      status.error = { code: event.code, message: event.message };
      status.remainingMs = null;
  }
  return status;
}

function begun(event: RecordedEvent & { readonly type: "queued" | "prepare" }): Told {
  const { outputDir, model, method, objective, backend, time } = event;
  const nothing = { step: 0, totalSteps: null, loss: null, evalLoss: null, remainingMs: null, stoppedEarly: false, error: null };
  const subject = { outputDir, model, method, objective, backend, updatedAt: time };
  if (event.type === "queued") return { ...subject, ...nothing, state: "queued", process: null, lock: null };
  const { pid, host, lock } = event;
  return { ...subject, ...nothing, state: "preparing", process: { pid, host, isAlive: null }, lock };
}
