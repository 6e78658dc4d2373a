import type { Metrics } from "../metrics.js";

/** How often each class was taken for each. */
export class ConfusionMatrix {
  readonly #classes: readonly string[];
  /** Row: the class it is; column: the class it was taken for. */
  readonly #counts: Float64Array;

  constructor(classes: readonly string[]) {
    this.#classes = classes;
    this.#counts = new Float64Array(classes.length ** 2);
  }

  add(actual: number, predicted: number): void {
    this.#counts[actual * this.#classes.length + predicted]!++;
  }

  /**
   * Accuracy; F1 as the mean over the classes (macro); and for each class precision, recall, their harmonic mean F1, and support, the number of
   * rows. Source: scikit-learn's classification_report; what would be divided by 0 is 0, as there.
   */
  metrics(): Metrics {
    const n = this.#classes.length;
    const count = (actual: number, predicted: number) => this.#counts[actual * n + predicted]!;
    const all = Array.from({ length: n }, (_, i) => i);
    const total = this.#counts.reduce((sum, value) => sum + value, 0);
    const right = all.reduce((sum, i) => sum + count(i, i), 0);
    const share = (part: number, whole: number) => (whole === 0 ? 0 : part / whole);

    const reports = all.map((i) => {
      const support = all.reduce((sum, j) => sum + count(i, j), 0);
      const predicted = all.reduce((sum, j) => sum + count(j, i), 0);
      const precision = share(count(i, i), predicted);
      const recall = share(count(i, i), support);
      return { precision, recall, f1: share(2 * count(i, i), predicted + support), support };
    });
    // A class that neither is there nor was taken for any row says nothing.
    const seen = reports.filter(({ support, f1 }, i) => support > 0 || f1 > 0 || all.some((j) => count(j, i) > 0));
    return {
      accuracy: share(right, total),
      f1: share(
        seen.reduce((sum, { f1 }) => sum + f1, 0),
        seen.length,
      ),
      classes: Object.fromEntries(this.#classes.map((name, i) => [name, reports[i]!])),
    };
  }
}
