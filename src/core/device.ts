import type { ComputeType, Kernels } from "../engine/kernels.js";

/** Where tensors live and who computes on them: the native engine, or the symbolic device that only counts. */
export interface Device {
  readonly kernels: Kernels;
  /** How matrix products multiply on this device. */
  readonly compute: ComputeType;
  /** True where nothing is computed, so that contents do not matter: weights need not be drawn. */
  readonly isSymbolic?: boolean;
}
