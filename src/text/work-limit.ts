import { createContext, Script } from "node:vm";

const context = createContext(Object.create(null) as { job?: (() => unknown) | undefined });
const script = new Script("job()");

/**
 * Runs `job` and stops it when it works longer than `limitMs`: templates and tokenizers come from strangers, and a regular
 * expression or a loop of theirs must not hang the process. V8 ends the job's own JavaScript and its regular expressions wherever
 * they are; `node:vm` is used for this alone, it isolates nothing. A call costs about 0.1 ms.
 * Throws what `job` throws, or the error that `tooLong` makes.
 */
export function withTimeLimit<T>(limitMs: number, job: () => T, tooLong: () => Error): T {
  context.job = job;
  try {
    return script.runInContext(context, { timeout: limitMs }) as T;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ERR_SCRIPT_EXECUTION_TIMEOUT") throw tooLong();
    throw error;
  } finally {
    context.job = undefined;
  }
}
