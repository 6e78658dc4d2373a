/** The work of one round: row numbers of its micro-batches, and how many epochs are done after each of its optimizer steps. */
export interface Window {
  readonly microBatches: readonly (readonly number[])[];
  readonly epochsAfter: readonly number[];
}

type Epoch = readonly (readonly number[])[];

/**
 * Which rows every optimizer step trains on, known before the first: each epoch's micro-batches in groups of `accumulationSteps`, the last
 * group of an epoch as it comes (a smaller step, not lost rows). With `stepsPerRound`, a group's rows are what several steps are made of.
 */
export class StepPlan {
  readonly stepsPerEpoch: number;
  readonly totalSteps: number;
  readonly #epoch: (n: number) => Epoch;
  readonly #accumulationSteps: number;
  readonly #stepsPerRound: number;
  #current: { readonly n: number; readonly microBatches: Epoch };

  /**
   * `maxSteps` > 0 overrides `epochs`, which may be a fraction; a round that they end in is finished. `epoch(n)` gives the micro-batches of epoch n:
   * always the same for the same n, and as many for every n.
   */
  constructor(
    epoch: (n: number) => Epoch,
    {
      accumulationSteps,
      epochs,
      maxSteps,
      stepsPerRound = 1,
    }: { accumulationSteps: number; epochs: number; maxSteps: number; stepsPerRound?: number | undefined },
  ) {
    this.#epoch = epoch;
    this.#accumulationSteps = accumulationSteps;
    this.#stepsPerRound = stepsPerRound;
    this.#current = { n: 0, microBatches: epoch(0) };
    this.stepsPerEpoch = Math.ceil(this.#current.microBatches.length / accumulationSteps) * stepsPerRound;
    if (this.stepsPerEpoch === 0) throw new RangeError("StepPlan: an epoch has no rows");
    const steps = maxSteps > 0 ? maxSteps : Math.ceil(epochs * this.stepsPerEpoch);
    this.totalSteps = Math.ceil(steps / stepsPerRound) * stepsPerRound;
  }

  /** The round that begins with optimizer step `step`, from 0. */
  at(step: number): Window {
    const n = Math.floor(step / this.stepsPerEpoch);
    const place = step % this.stepsPerEpoch;
    if (this.#current.n !== n) this.#current = { n, microBatches: this.#epoch(n) };
    const first = (place / this.#stepsPerRound) * this.#accumulationSteps;
    return {
      microBatches: this.#current.microBatches.slice(first, first + this.#accumulationSteps),
      epochsAfter: Array.from({ length: this.#stepsPerRound }, (_, i) => n + (place + i + 1) / this.stepsPerEpoch),
    };
  }
}
