import { type BatchShape, estimateStep, overheadBytes, type StepWork, smallestRemedy } from "../../advise/estimate.js";
import { availableMemoryBytes } from "../../advise/memory.js";
import { DoesNotFitError } from "../../errors.js";

/** What a run will need of the machine. */
export interface Fit {
  readonly predictedPeakBytes: number;
  readonly availableBytes: number;
  /** Of the largest micro-batch, forward, backward and update. */
  readonly flops: number;
}

/** Throws DoesNotFitError, with the smallest change that fits, if the largest step would need more memory than there is. */
export function checkMemory({ batchSize, isPacked, ...work }: StepWork & BatchShape): Fit {
  const { flops, peakBytes } = estimateStep(work);
  const availableBytes = availableMemoryBytes();
  const neededBytes = peakBytes + overheadBytes;
  if (neededBytes > availableBytes) {
    const remedy = smallestRemedy(work, { batchSize, isPacked }, availableBytes - overheadBytes);
    const inWords = (bytes: number) => (bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`);
    throw new DoesNotFitError(
      `this run needs about ${inWords(neededBytes)} of memory, and ${inWords(availableBytes)} are available. ` +
        (remedy === undefined
          ? "No smaller batch would help: choose a smaller or quantized model"
          : `The smallest change that fits: ${remedy.change} (about ${inWords(remedy.peakBytes + overheadBytes)})`),
    );
  }
  return { flops, availableBytes, predictedPeakBytes: process.memoryUsage.rss() + neededBytes };
}
