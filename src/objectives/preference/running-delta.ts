import { z } from "zod";
import type { Row } from "../../data/example.js";
import { CheckpointError } from "../../errors.js";
import type { Experience, RoundStart, TaskState } from "../objective.js";

/** A row of a training step, with what was known of rewards before it. */
export type WithDelta<R extends Row> = R & { readonly delta?: number };

/**
 * δ of BCO: the mean of all rewards of the run so far (Jung et al. 2024, arXiv:2404.04656, eq. 9). It stands still within an optimizer step, whatever the
 * micro-batches: those of the step count from the next one on. (TRL's and LLaMA-Factory's moves with each micro-batch, which counts in its own δ.)
 */
export class RunningDelta implements TaskState {
  #sum = 0;
  #count = 0;

  get mean(): number {
    return this.#count === 0 ? 0 : this.#sum / this.#count;
  }

  add(rewards: Iterable<number>): void {
    for (const reward of rewards) {
      this.#sum += reward;
      this.#count++;
    }
  }

  /** The rows of a step in its micro-batches, each with δ. */
  step<R extends Row>(rows: readonly R[], at: RoundStart): Experience<R> {
    const delta = this.mean;
    return {
      steps: [
        inMicroBatches(
          rows.map((row) => ({ ...row, delta })),
          at,
        ),
      ],
      metrics: { delta: { sum: delta, count: 1 } },
    };
  }

  save(): unknown {
    return { sum: this.#sum, count: this.#count };
  }

  load(saved: unknown): void {
    const read = Saved.safeParse(saved);
    if (!read.success) throw new CheckpointError("the checkpoint holds no mean of rewards, which this run goes on from");
    this.#sum = read.data.sum;
    this.#count = read.data.count;
  }
}

const Saved = z.strictObject({ sum: z.number(), count: z.int().min(0) });

/** Rows of a round cut as the plan cuts them. */
export function inMicroBatches<R>(rows: readonly R[], { batchSizes }: RoundStart): R[][] {
  let at = 0;
  return batchSizes.map((size) => {
    at += size;
    return rows.slice(at - size, at);
  });
}
