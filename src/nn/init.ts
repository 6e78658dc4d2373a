import type { Device } from "../core/device.js";
import type { Rng } from "../core/rng.js";
import { type Shape, sizeOf, Tensor, unscoped } from "../core/tensor.js";
import { Embedding } from "./embedding.js";
import { Linear } from "./linear.js";
import { Parameter } from "./module.js";

/** A tensor, each of its values as `draw` gives it, for the caller to dispose. On a symbolic device nothing is drawn. */
export function drawnValues(device: Device, shape: Shape, draw: () => number): Tensor {
  return unscoped(() => {
    if (device.isSymbolic) return Tensor.empty(device, shape);
    return Tensor.from(device, Float32Array.from({ length: sizeOf(shape) }, draw), shape);
  });
}

/** A parameter that trains, each of its values as `draw` gives it. */
export function drawn(device: Device, shape: Shape, draw: () => number): Parameter {
  const parameter = new Parameter(shape, drawnValues(device, shape, draw));
  parameter.requiresGrad = true;
  return parameter;
}

/** A Linear with bias that trains, drawn as PyTorch does: all from U(−1/√in, 1/√in). */
export function drawnLinear(device: Device, inFeatures: number, outFeatures: number, rng: Rng): Linear {
  const bound = 1 / Math.sqrt(inFeatures);
  const draw = () => rng.uniform(-bound, bound);
  return new Linear(inFeatures, outFeatures, {
    weight: drawn(device, [outFeatures, inFeatures], draw),
    bias: drawn(device, [outFeatures], draw),
  });
}

/** A table of vectors that trains, drawn as PyTorch does: standard normal. */
export function drawnEmbedding(device: Device, rows: number, width: number, rng: Rng): Embedding {
  return new Embedding(
    rows,
    width,
    drawn(device, [rows, width], () => rng.normal()),
  );
}
