/** One optimizer step: row numbers of its micro-batches, and how many epochs are done after it. */
export interface Window {
  readonly microBatches: readonly (readonly number[])[];
  readonly epochAfter: number;
}

type Epoch = readonly (readonly number[])[];

/**
 * Which rows every optimizer step trains on, known before the first: each epoch's micro-batches in groups of `accumulationSteps`, the last
 * group of an epoch as it comes (a smaller step, not lost rows).
 */
export class StepPlan {
  readonly stepsPerEpoch: number;
  readonly totalSteps: number;
  readonly #epoch: (n: number) => Epoch;
  readonly #accumulationSteps: number;
  #current: { readonly n: number; readonly microBatches: Epoch };

  /**
   * `maxSteps` > 0 overrides `epochs`, which may be a fraction. `epoch(n)` gives the micro-batches of epoch n: always the same for the same
   * n, and as many for every n.
   */
  constructor(
    epoch: (n: number) => Epoch,
    { accumulationSteps, epochs, maxSteps }: { accumulationSteps: number; epochs: number; maxSteps: number },
  ) {
    this.#epoch = epoch;
    this.#accumulationSteps = accumulationSteps;
    this.#current = { n: 0, microBatches: epoch(0) };
    this.stepsPerEpoch = Math.ceil(this.#current.microBatches.length / accumulationSteps);
    if (this.stepsPerEpoch === 0) throw new RangeError("StepPlan: an epoch has no rows");
    this.totalSteps = maxSteps > 0 ? maxSteps : Math.ceil(epochs * this.stepsPerEpoch);
  }

  /** The work of optimizer step `step`, from 0. */
  at(step: number): Window {
    const n = Math.floor(step / this.stepsPerEpoch);
    const place = step % this.stepsPerEpoch;
    if (this.#current.n !== n) this.#current = { n, microBatches: this.#epoch(n) };
    const first = place * this.#accumulationSteps;
    return {
      microBatches: this.#current.microBatches.slice(first, first + this.#accumulationSteps),
      epochAfter: n + (place + 1) / this.stepsPerEpoch,
    };
  }
}
