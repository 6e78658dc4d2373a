import type { ComputeType, Kernels } from "../engine/kernels.js";

/** Where tensors live and who computes on them: the native engine, or the symbolic device that only counts. */
export interface Device {
  readonly kernels: Kernels;
  /** How matrix products multiply on this device. */
  readonly compute: ComputeType;
  /** True where nothing is computed and contents do not matter: whoever would draw them need not. */
  readonly isSymbolic?: boolean;
}
