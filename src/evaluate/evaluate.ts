import { owned } from "../core/tensor.js";
import type { Row } from "../data/example.js";
import type { Metrics } from "../objectives/metrics.js";
import type { Batch, Task, Term, TermValue } from "../objectives/objective.js";
import { readTerms, Sums } from "../objectives/sums.js";
import type { SharedBase } from "../tuners/shared-base.js";

export interface EvaluateOptions<R extends Row = Row> {
  /** Rows of a batch. */
  readonly batchSize: number;
  /** Optimizer steps that the model has behind it. */
  readonly step?: number;
  /** Ends the evaluation before the next batch. */
  readonly signal?: AbortSignal;
  /** Gets the values of each batch's terms; what it throws ends the evaluation. */
  readonly onBatch?: (values: Readonly<Record<string, TermValue>>, rows: readonly R[]) => Promise<void>;
}

/** What held-out rows tell of a model. */
export interface Evaluated {
  /** The task's loss, averaged over all rows as a training step averages it. */
  readonly loss: number;
  /** Null where the task has none. */
  readonly metrics: Metrics | null;
}

/** How well what sits on a base under a name, or the base alone (null), does on rows under a task: without dropout and without gradients. Null if `signal` ended it: half an evaluation says nothing. */
export async function evaluate<R extends Row, B extends Batch>(
  base: SharedBase,
  name: string | null,
  task: Task<R, B>,
  rows: readonly R[],
  { batchSize, step, signal, onBatch }: EvaluateOptions<R>,
): Promise<Evaluated | null> {
  const evaluation = task.evaluation?.();
  const sums = new Sums();
  const at = { policy: name, step, signal: signal ?? new AbortController().signal };
  for (let start = 0; start < rows.length; start += batchSize) {
    if (signal?.aborted) return null;
    const part = rows.slice(start, start + batchSize);
    const batch = task.collate(part);
    const read = base.with(
      name,
      (model) => evaluation?.add(model, batch, base, at) ?? readerOf(() => task.terms(model, batch, base)),
    );
    const values = await valuesOf(read, signal);
    if (values === null) return null;
    await onBatch?.(values, part);
    sums.add(batch, values);
  }
  const metrics = { ...sums.metrics, ...evaluation?.metrics() };
  return { loss: sums.loss, metrics: Object.keys(metrics).length > 0 ? metrics : null };
}

/** Null if reading was ended by the signal. */
async function valuesOf<T>(read: () => Promise<T>, signal: AbortSignal | undefined): Promise<T | null> {
  try {
    return await read();
  } catch (error) {
    if (signal?.aborted && error === signal.reason) return null;
    throw error;
  }
}

/** Queues the work of terms; what it returns reads them, and gives their memory back. */
function readerOf(body: () => Readonly<Record<string, Term>>): () => Promise<Readonly<Record<string, TermValue>>> {
  const { result, free } = owned(body);
  return async () => {
    try {
      return await readTerms(result);
    } finally {
      free();
    }
  };
}
