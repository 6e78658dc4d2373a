import { converted } from "../core/linalg.js";
import { type Shape, type Tensor, unscoped } from "../core/tensor.js";
import { type DType, isWholeBlocks } from "../engine/dtype.js";
import { ModelError } from "../errors.js";
import type { LanguageModel } from "../models/language-model.js";
import type { NumberType } from "./choices.js";

/** `general.file_type` of a GGUF file (llama.cpp, include/llama.h: llama_ftype). */
export const ggufFileTypes: Readonly<Record<NumberType, number>> = { f32: 0, f16: 1, q4_0: 2, q8_0: 7, q4_k_m: 15, bf16: 32 };

/** Types that a safetensors file can hold. */
export function isPlain(type: NumberType): type is "f32" | "f16" | "bf16" {
  return type === "f32" || type === "f16" || type === "bf16";
}

/** What llama.cpp's choice of types within one file depends on. */
export interface Mixture {
  readonly type: NumberType;
  readonly layers: number;
  /** The embedding is the output projection as well. */
  readonly isTied: boolean;
}

/**
 * The type of a matrix (rows, cols) by its Hugging Face name. Vectors stay f32, or what the type is for plain types.
 *
 * Source: llama.cpp, src/llama-quant.cpp (llama_tensor_get_type) without an importance matrix: the output projection gets more bits; in
 * Q4_K_M so do values and down projections of some layers; where rows are no whole blocks, a type of smaller blocks takes over. Unlike there,
 * models of 80 layers get no Q5_K for their values.
 */
export function matrixType(name: string, shape: Shape, { type, layers, isTied }: Mixture): DType {
  if (isPlain(type)) return type;
  const usual = type === "q4_k_m" ? "q4_k" : type;
  return withWholeBlocks(hasMoreBits(name) && usual !== "q8_0" ? "q6_k" : usual, shape.at(-1)!);

  function hasMoreBits(tensor: string): boolean {
    if (tensor === (isTied ? "model.embed_tokens.weight" : "lm_head.weight")) return true;
    const match = /\.layers\.(\d+)\.(?:self_attn\.v_proj|mlp\.down_proj)\.weight$/.exec(tensor);
    return type === "q4_k_m" && match !== null && isImportant(Number(match[1]), layers);
  }
}

/** The first and the last eighth of the layers, and every third between. */
function isImportant(layer: number, layers: number): boolean {
  const eighth = Math.floor(layers / 8);
  return layer < eighth || layer >= Math.floor((7 * layers) / 8) || (layer - eighth) % 3 === 2;
}

function withWholeBlocks(type: DType, cols: number): DType {
  if (isWholeBlocks(type, cols)) return type;
  const smaller = type === "q4_k" ? "q5_0" : type === "q6_k" ? "q8_0" : "f16";
  return isWholeBlocks(smaller, cols) ? smaller : "f16";
}

/** Gives every matrix of a model the type that `typeOf` says, one after the other: what is measured then is what will be written. */
export function storeMatrices(model: LanguageModel, typeOf: (name: string, shape: Shape) => DType): void {
  for (const [name, parameter] of model.namedParameters())
    if (parameter.shape.length > 1) {
      const wanted = typeOf(name, parameter.shape);
      if (parameter.value.dtype !== wanted) parameter.value = unscoped(() => converted(parameter.value, wanted));
    }
}

/** The bytes of a tensor in its own type. Throws ModelError if a number is too large for f16. */
export async function bytesOfTensor(name: string, tensor: Tensor, bytes: number): Promise<Uint8Array> {
  const data = new Uint8Array(bytes);
  await tensor.device.kernels.read(tensor.id, 0, data);
  if (tensor.dtype === "f16" && new Uint16Array(data.buffer).some((half) => (half & 0x7c00) === 0x7c00))
    throw new ModelError(`${name} holds a number that is too large for f16 (over 65504): choose --type bf16, f32 or q8_0.`);
  return data;
}
