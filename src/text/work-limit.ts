import { readFileSync } from "node:fs";
import { createContext, Script } from "node:vm";

const context = createContext(Object.create(null) as { job?: (() => unknown) | undefined });
const script = new Script("job()");
let isLimited = false;

const maxAttempts = 8;

/**
 * Runs `job` and stops it when it works longer than `limitMs`: templates, tokenizers and regular expressions come from strangers, and one of
 * theirs must not hang the process. V8 ends the job's own JavaScript and its regular expressions wherever they are; `node:vm` is used for
 * this alone, it isolates nothing.
 *
 * What counts is the time that this thread works, not the time on the clock: a job that a busy machine lets wait is run again with longer
 * on the clock, and again, until it ends or has worked for `limitMs`. So `job` may run more than once and must not leave traces.
 *
 * The clock is a thread, started for each call: 0.1 ms, and over 1 ms on a busy machine. A limit inside a limit is therefore free and does not
 * count; who has many small jobs puts one around them.
 *
 * Throws what `job` throws, or the error that `tooLong` makes.
 */
export function withTimeLimit<T>(limitMs: number, job: () => T, tooLong: () => Error): T {
  if (isLimited) return job();
  let clockMs = limitMs;
  for (let attempt = 1; ; attempt++) {
    const before = workedMs();
    context.job = job;
    isLimited = true;
    try {
      return script.runInContext(context, { timeout: Math.ceil(Math.min(clockMs, 2 ** 31 - 1)) }) as T;
    } catch (error) {
      // Not `instanceof Error`: this one belongs to the context.
      if ((error as { code?: unknown } | null)?.code !== "ERR_SCRIPT_EXECUTION_TIMEOUT") throw error;
      const worked = workedMs() - before;
      // A little less than the limit: the clock that stops a job starts before the job.
      if (worked > 0.9 * limitMs || attempt === maxAttempts) throw tooLong();
      clockMs *= Math.min(8, (1.25 * limitMs) / worked); // what it would have taken at this pace, and some more
    } finally {
      isLimited = false;
      context.job = undefined;
    }
  }
}

/**
 * Milliseconds that this thread has worked. The whole process has other threads, the engine's among them, whose work is not the job's.
 * Where neither Node (from 23.9) nor Linux tells of a thread, it is the process after all.
 */
function workedMs(): number {
  const ofThread = (process as { threadCpuUsage?: () => NodeJS.CpuUsage }).threadCpuUsage?.();
  if (ofThread !== undefined) return (ofThread.user + ofThread.system) / 1000;
  try {
    const nanoseconds = Number(readFileSync("/proc/thread-self/schedstat", "latin1").split(" ")[0]);
    if (nanoseconds > 0) return nanoseconds / 1e6;
  } catch {
    // not Linux
  }
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}
