import type { Metrics } from "./metrics.js";
import type { Batch, ComputedTerm, Term, TermValue, Total } from "./objective.js";

/** What batches add up to: the terms of a loss and the metrics, each with its own count. The only place that divides. */
export class Sums {
  readonly #terms = new Map<string, Total & { readonly weight: number }>();
  readonly #metrics = new Map<string, Total>();

  /** Adds what the terms came to on a batch. */
  add({ counts }: Batch, values: Readonly<Record<string, TermValue>>): void {
    for (const [name, { sum, weight = 1, metrics = {} }] of Object.entries(values)) {
      const before = this.#terms.get(name);
      this.#terms.set(name, { sum: (before?.sum ?? 0) + sum, count: (before?.count ?? 0) + countOf(counts, name), weight });
      this.addMetrics(metrics);
    }
  }

  addMetrics(metrics: Readonly<Record<string, Total>>): void {
    for (const [name, { sum, count }] of Object.entries(metrics)) {
      const before = this.#metrics.get(name) ?? { sum: 0, count: 0 };
      this.#metrics.set(name, { sum: before.sum + sum, count: before.count + count });
    }
  }

  /** Σ weight · mean. */
  get loss(): number {
    return [...this.#terms.values()].reduce((loss, term) => loss + term.weight * mean(term), 0);
  }

  /** The means of the metrics and, where the loss has several terms, of each of these, without its weight; null if that is nothing. */
  get metrics(): Metrics | null {
    const terms = this.#terms.size > 1 ? this.#terms : [];
    const means = [...terms, ...this.#metrics].map(([name, total]) => [name, mean(total)] as const);
    return means.length > 0 ? Object.fromEntries(means) : null;
  }
}

/** Reads what a term is computed from, and computes it. */
export async function compute(term: ComputedTerm): Promise<ReturnType<ComputedTerm["loss"]>> {
  const [values, ...given] = await Promise.all([term.of, ...(term.given ?? [])].map((tensor) => tensor.read()));
  return term.loss(values!, ...given);
}

/** Reads the values of terms that no gradient is asked of. */
export async function readTerms(terms: Readonly<Record<string, Term>>): Promise<Readonly<Record<string, TermValue>>> {
  const values: Record<string, TermValue> = {};
  for (const [name, term] of Object.entries(terms)) {
    const { weight } = term;
    values[name] = "of" in term ? { ...(await compute(term)), weight } : { sum: await term.sum.item(), weight };
  }
  return values;
}

/** What the terms of a step's batches sum over, by name. */
export function totalCounts(batches: readonly Batch[]): Readonly<Record<string, number>> {
  const totals: Record<string, number> = {};
  for (const { counts } of batches)
    for (const [name, count] of Object.entries(counts)) totals[name] = (totals[name] ?? 0) + count;
  return totals;
}

/** A batch must say what each of its terms sums over. */
export function countOf(counts: Readonly<Record<string, number>>, term: string): number {
  const count = counts[term];
  if (count === undefined)
    throw new RangeError(`the term "${term}" of the loss has no count: expected one among ${Object.keys(counts)}`);
  return count;
}

/** Of nothing it is 0: a term that no row of a step has, such as one of wanted answers only. */
function mean({ sum, count }: Total): number {
  return count === 0 ? 0 : sum / count;
}
