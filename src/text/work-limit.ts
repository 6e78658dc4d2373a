import { createContext, Script } from "node:vm";

const context = createContext(Object.create(null) as { job?: (() => unknown) | undefined });
const script = new Script("job()");
let isLimited = false;

/**
 * Runs `job` and stops it when it works longer than `limitMs`: templates and tokenizers come from strangers, and a regular
 * expression or a loop of theirs must not hang the process. V8 ends the job's own JavaScript and its regular expressions wherever
 * they are; `node:vm` is used for this alone, it isolates nothing.
 *
 * The clock is a thread, started for each call: 0.1 ms, and over 1 ms on a busy machine. A limit inside a limit is therefore free
 * and does not count; who has many small jobs puts one around them. Time in which the process did not run (stopped, or a very
 * busy machine) is given again, so `job` may run more than once and must not leave traces.
 *
 * Throws what `job` throws, or the error that `tooLong` makes.
 */
export function withTimeLimit<T>(limitMs: number, job: () => T, tooLong: () => Error): T {
  if (isLimited) return job();
  for (let attempt = 1; ; attempt++) {
    const before = process.cpuUsage();
    context.job = job;
    isLimited = true;
    try {
      return script.runInContext(context, { timeout: Math.ceil(limitMs) }) as T;
    } catch (error) {
      // Not `instanceof Error`: this one belongs to the context.
      if ((error as { code?: unknown } | null)?.code !== "ERR_SCRIPT_EXECUTION_TIMEOUT") throw error;
      const { user, system } = process.cpuUsage(before);
      const workedMs = (user + system) / 1000;
      if (workedMs > limitMs / 2 || attempt === 3) throw tooLong();
    } finally {
      isLimited = false;
      context.job = undefined;
    }
  }
}
