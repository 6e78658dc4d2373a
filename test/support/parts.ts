import type { ModelFiles } from "../../src/io/model-files.js";
import type { OptimizerName } from "../../src/optim/optimizers.js";
import type { Parts } from "../../src/train/assemble.js";
import type { Tuning } from "../../src/tuners/tuner.js";

/** What a model that trains is put together from, with the usual settings where nothing else is said. */
export function partsOf(
  files: ModelFiles,
  tuning: Tuning,
  {
    gradientCheckpointing = false,
    disableDropout = false,
    optim = "adamw_torch",
  }: { gradientCheckpointing?: boolean; disableDropout?: boolean; optim?: OptimizerName } = {},
): Parts {
  const optimizer = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, args: {}, name: optim };
  return { files, tuning, seed: 0, gradientCheckpointing, disableDropout, optimizer };
}
