import { converted } from "../core/linalg.js";
import { scope, type Tensor } from "../core/tensor.js";
import { type DType, isWholeBlocks } from "../engine/dtype.js";
import type { ComputeType } from "../engine/kernels.js";
import type { CausalLM } from "../models/causal-lm.js";
import { Linear, type OutputProjection } from "../nn/linear.js";
import { Module } from "../nn/module.js";
import type { NumberType } from "./choices.js";
import { isPlain } from "./number-types.js";

/** A program that reads what was written, and the arithmetic in which it does. */
export interface Reader {
  readonly program: "transformers" | "llama.cpp" | "attune";
  /** In words, for who reads the receipt. */
  readonly arithmetic: string;
  /** The engine's products; where they are f32, `rounds` says what is rounded before each. */
  readonly compute: ComputeType;
  readonly rounds: "nothing" | "as weights" | "to 8 bits";
}

/**
 * Who reads a file of this type, in which arithmetic. Weights are expanded exactly, products add in f32; programs differ in how they round what goes
 * into a product:
 *
 * - transformers 5 computes in the type of the folder (`dtype="auto"`), so inputs are rounded to it.
 * - llama.cpp on a CPU rounds inputs to the weights' type where that is plain, else to blocks of 8 bits (ggml-cpu.c, type_traits_cpu: vec_dot_type).
 *   Its blocks of 256 under the types of k (Q8_K) are taken for blocks of 32 (Q8_0), which are a little finer.
 * - attune chooses what its CPU has in hardware (`fastestCompute`): f32, or bf16, which rounds f32 and f16 weights as well.
 */
export function readersOf(to: "hf" | "gguf", type: NumberType, own: ComputeType): Reader[] {
  const attune: Reader = {
    program: "attune",
    arithmetic: own === "f32" ? "f32, this CPU's default" : "products of bf16, this CPU's default",
    compute: own,
    rounds: "nothing",
  };
  const rounded = type === "f32" ? "f32" : `inputs of products in ${isPlain(type) ? type : "blocks of 8 bits"}, sums in f32`;
  const rounds = type === "f32" ? "nothing" : isPlain(type) ? "as weights" : "to 8 bits";
  return [{ program: to === "hf" ? "transformers" : "llama.cpp", arithmetic: rounded, compute: "f32", rounds }, attune];
}

/** Lets a model, for reading only, round what goes into its products as a reader does. */
export function readAs(model: CausalLM, { rounds }: Pick<Reader, "rounds">): void {
  if (rounds === "nothing") return;
  for (const [path, module] of [...model.namedModules()])
    if (module instanceof Linear) model.replace(path, new RoundingLinear(module, inputTypeOf(module, rounds)));
}

function inputTypeOf({ weight, inFeatures }: Linear, rounds: "as weights" | "to 8 bits"): DType {
  const { dtype } = weight.value;
  if (rounds === "as weights" || dtype === "f16" || dtype === "bf16") return dtype;
  return isWholeBlocks("q8_0", inFeatures) ? "q8_0" : dtype;
}

/** A Linear whose inputs are rounded to a type. */
class RoundingLinear extends Module implements OutputProjection {
  readonly base_layer: Linear;
  readonly #type: DType;

  constructor(base: Linear, type: DType) {
    super();
    this.base_layer = base;
    this.#type = type;
  }

  forward(x: Tensor): Tensor {
    return this.base_layer.forward(this.#rounded(x));
  }

  crossEntropy(x: Tensor, targets: Int32Array): Tensor {
    return this.base_layer.crossEntropy(this.#rounded(x), targets);
  }

  logProbs(x: Tensor, targets: Int32Array, temperature = 1): Tensor {
    return this.base_layer.logProbs(this.#rounded(x), targets, temperature);
  }

  #rounded(x: Tensor): Tensor {
    return this.#type === "f32" ? x : scope(() => converted(converted(x, this.#type), "f32"));
  }
}
