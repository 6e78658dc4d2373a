import { estimateStep, type LargestBatches, overheadBytes, type StepWork, smallestRemedy } from "../../advise/estimate.js";
import { availableMemoryBytes } from "../../advise/memory.js";
import { DoesNotFitError } from "../../errors.js";
import type { RunData } from "./run-data.js";

/** What a run will need of the machine. */
export interface Fit {
  readonly predictedPeakBytes: number;
  readonly availableBytes: number;
  /** Forward, backward and update. */
  readonly flopsPerToken: number;
  /** What an evaluation measures, by name; null where nothing is evaluated. */
  readonly measures: readonly string[] | null;
}

type Work = Omit<StepWork, keyof LargestBatches>;

/** Throws DoesNotFitError, with the smallest change that fits, if the largest step would need more memory than there is. */
export async function checkMemory(work: Work, { shape, largestBatches }: RunData): Promise<Fit> {
  const largest = { ...work, ...largestBatches(shape) };
  const { flops, tokens, measures, peakBytes, residentBytes } = await estimateStep(largest);
  const availableBytes = availableMemoryBytes();
  const besideTensors = residentBytes - peakBytes + overheadBytes;
  const neededBytes = peakBytes + besideTensors;
  if (neededBytes > availableBytes) {
    const remedy = await smallestRemedy(largest, shape, largestBatches, availableBytes - besideTensors);
    const inWords = (bytes: number) => (bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`);
    throw new DoesNotFitError(
      `this run needs about ${inWords(neededBytes)} of memory, and ${inWords(availableBytes)} are available. ` +
        (remedy === undefined
          ? "No smaller batch would help: choose a smaller or quantized model"
          : `The smallest change that fits: ${remedy.change} (about ${inWords(remedy.peakBytes + besideTensors)})`),
    );
  }
  return { flopsPerToken: flops / tokens, measures, availableBytes, predictedPeakBytes: process.memoryUsage.rss() + neededBytes };
}
