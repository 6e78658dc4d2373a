import type { ModelFiles } from "../../src/io/model-files.js";
import type { Parts } from "../../src/train/assemble.js";
import type { Tuning } from "../../src/tuners/tuner.js";

/** What a model that trains is put together from, with the usual settings where nothing else is said. */
export function partsOf(
  files: ModelFiles,
  tuning: Tuning,
  {
    gradientCheckpointing = false,
    disableDropout = false,
    bits = 32,
  }: { gradientCheckpointing?: boolean; disableDropout?: boolean; bits?: 8 | 32 } = {},
): Parts {
  const optimizer = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, bits };
  return { files, tuning, seed: 0, gradientCheckpointing, disableDropout, optimizer };
}
