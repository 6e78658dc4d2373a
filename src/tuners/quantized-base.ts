import { z } from "zod";
import { converted } from "../core/linalg.js";
import { type Tensor, unscoped } from "../core/tensor.js";
import { type DType, isWholeBlocks } from "../engine/dtype.js";
import type { LanguageModel } from "../models/language-model.js";
import type { StoreWeight } from "../models/load.js";
import { Linear } from "../nn/linear.js";

/**
 * Settings of a base that is quantized while it is read. Names and defaults are LLaMA-Factory's (hparams/model_args.py), where bitsandbytes
 * quantizes: to 4 bits as here, to 8 by LLM.int8, for which GGUF's Q8_0 stands here.
 */
export const quantizationKeys = {
  quantization_bit: z
    .union([z.literal(4), z.literal(8)])
    .nullable()
    .default(null)
    .describe("4: keep the base's Linear layers in 4 bits (QLoRA); 8: in 8 bits, as GGUF's Q8_0; empty: as they are stored"),
  quantization_type: z.enum(["nf4", "fp4"]).default("nf4").describe("which 16 values 4 bits stand for"),
  double_quantization: z.boolean().default(true).describe("quantize the scales of blocks as well: 0.4 bits less for a weight"),
};

export interface Quantization {
  readonly quantization_bit: 4 | 8 | null;
  readonly quantization_type: "nf4" | "fp4";
  readonly double_quantization: boolean;
}

/** The type in which the base is stored in memory; null where it is not to be quantized. */
export function quantizedType({ quantization_bit, quantization_type, double_quantization }: Quantization): DType | null {
  if (quantization_bit === null) return null;
  if (quantization_bit === 8) return "q8_0";
  return double_quantization ? quantization_type : `${quantization_type}_f32`;
}

export interface QuantizedBaseOptions {
  readonly isWhole?: (path: string) => boolean;
  /** Makes the weight that is stored, for the caller to dispose; `rounded` where not given. */
  readonly quantize?: (w: Tensor, type: DType, name: string) => Tensor;
}

/**
 * Quantizes every Linear but the output projection, a classifier's head, and those that `isWhole` picks, which train whole:
 * QLoRA's base (Dettmers et al. 2023, arXiv:2305.14314 §3). A weight that cannot be quantized, or is already, stays as it is, and
 * a notice says so.
 */
export function quantizedBase(
  model: LanguageModel,
  settings: Quantization,
  notify: (message: string) => void,
  { isWhole = () => false, quantize = rounded }: QuantizedBaseOptions = {},
): StoreWeight {
  const type = quantizedType(settings);
  if (type === null) return (_name, read) => read;
  const wanted = new Set<string>();
  for (const [path, module] of model.namedModules())
    if (module instanceof Linear && path.includes(".") && !isWhole(path)) wanted.add(`${path}.weight`);
  const said = new Set<string>();
  const once = (message: string) => {
    if (!said.has(message)) notify(message);
    said.add(message);
  };
  return (name, read) => {
    if (!wanted.has(name)) return read;
    if (!["f32", "f16", "bf16"].includes(read.dtype)) {
      once(`the base is quantized already, to ${read.dtype}: it is trained on as it is`);
      return read;
    }
    if (!isWholeBlocks(type, read.columns)) {
      once(`rows of ${read.columns} are not whole blocks of ${type}: ${name} and weights like it are kept in ${read.dtype}`);
      return read;
    }
    return quantize(read, type, name);
  };
}

/** The nearest value for every weight of a block. For the caller to dispose. */
export function rounded(w: Tensor, type: DType): Tensor {
  return unscoped(() => converted(w, type));
}
