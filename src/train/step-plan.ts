/** One optimizer step: row numbers of its micro-batches, and how many epochs are done after it. */
export interface Window {
  readonly microBatches: readonly (readonly number[])[];
  readonly epochAfter: number;
}

/**
 * Which rows every optimizer step trains on, known before the first: each epoch's micro-batches in groups of `accumulationSteps`, the last
 * group of an epoch as it comes (a smaller step, not lost rows).
 */
export class StepPlan {
  readonly totalSteps: number;
  readonly #windowsOf: (epoch: number) => Window[];

  /** `maxSteps` > 0 overrides `epochs`, which may be a fraction. `epoch(n)` gives the micro-batches of epoch n, always the same. */
  constructor(
    epoch: (n: number) => readonly (readonly number[])[],
    { accumulationSteps, epochs, maxSteps }: { accumulationSteps: number; epochs: number; maxSteps: number },
  ) {
    this.#windowsOf = memoize((n) => {
      const microBatches = epoch(n);
      const steps = Math.ceil(microBatches.length / accumulationSteps);
      return Array.from({ length: steps }, (_, i) => ({
        microBatches: microBatches.slice(i * accumulationSteps, (i + 1) * accumulationSteps),
        epochAfter: n + (i + 1) / steps,
      }));
    });
    this.totalSteps = maxSteps > 0 ? maxSteps : this.#stepsOf(epochs);
  }

  at(step: number): Window {
    let before = 0;
    for (let epoch = 0; ; epoch++) {
      const windows = this.#windowsOf(epoch);
      if (windows.length === 0) throw new RangeError("StepPlan: an epoch has no rows");
      const window = windows[step - before];
      if (window !== undefined) return window;
      before += windows.length;
    }
  }

  #stepsOf(epochs: number): number {
    let steps = 0;
    for (let epoch = 0; epoch < epochs; epoch++) steps += Math.ceil(this.#windowsOf(epoch).length * Math.min(1, epochs - epoch));
    return steps;
  }
}

/** Row numbers of all epochs are small beside the rows. */
function memoize<T>(compute: (n: number) => T): (n: number) => T {
  const results = new Map<number, T>();
  return (n) => {
    const known = results.get(n);
    if (known !== undefined) return known;
    const result = compute(n);
    results.set(n, result);
    return result;
  };
}
