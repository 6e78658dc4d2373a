import type { Tensor } from "../core/tensor.js";
import { firstNonFinite, inPieces } from "../io/safetensors.js";
import type { Parameter } from "../nn/module.js";
import { sourceOf } from "./load.js";

/** Whether every number of a tensor is finite. */
export async function isFiniteTensor(tensor: Tensor): Promise<boolean> {
  const { data, dtype } = sourceOf("", tensor);
  for await (const piece of inPieces(data())) if (firstNonFinite(piece, dtype) >= 0) return false;
  return true;
}

/** The name of the first weight that holds a number which is not finite; null if none does. */
export async function firstBroken(parameters: Iterable<[name: string, parameter: Parameter]>): Promise<string | null> {
  for (const [name, { value }] of parameters) if (!(await isFiniteTensor(value))) return name;
  return null;
}
