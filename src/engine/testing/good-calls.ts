import type { Kernels, Memory, NativeEngine } from "../kernels.js";

/** A call's arguments by name: sizes, flags and so on as they are, blocks by the number of f32 that they must hold. */
export type Arguments = [
  name: string,
  value:
    | Block
    | number
    | boolean
    | string
    | bigint
    | Int32Array
    | Float32Array
    | Float64Array
    | Record<string, number | boolean | bigint>,
][];

export class Block {
  readonly floats: number;
  constructor(floats: number) {
    this.floats = floats;
  }
}

const f32s = (floats: number) => new Block(floats);
export const shape = {
  qRows: 6,
  kRows: 8,
  heads: 4,
  kvHeads: 2,
  headDim: 16,
  scale: 0.25,
  causal: true,
  window: 0,
  dropout: 0,
  seed: 0n,
};
export const segments = Int32Array.of(0, 2, 0, 3, 0, 0, 2, 4, 3, 5, 1, 2);
const q = f32s(6 * 4 * 16);
const k = f32s(8 * 2 * 16);
const lse = f32s(6 * 4);
export const step = {
  lr: 1e-3,
  beta1: 0.9,
  beta2: 0.99,
  eps: 1e-8,
  weightDecay: 0,
  correction1: 0.1,
  correction2: 0.01,
  gradScale: 1,
};
const lionStep = { lr: 1e-3, beta1: 0.9, beta2: 0.99, weightDecay: 0.1, gradScale: 1 };
const ids = Int32Array.of(4, 0, 4);
const products = (first: Arguments): Arguments => [
  ...first,
  ["m", 3],
  ["n", 5],
  ["k", 32],
  ["scale", 1],
  ["accumulate", false],
  ["compute", "f32"],
];

/** A good call of every kernel: a kernel without one does not compile. */
export const kernelCalls: Record<Exclude<keyof Kernels, keyof Memory>, Arguments> = {
  matmul: products([
    ["x", f32s(96)],
    ["w", f32s(160)],
    ["wType", "f32"],
    ["y", f32s(15)],
  ]),
  matmulInputGrad: products([
    ["dy", f32s(15)],
    ["w", f32s(160)],
    ["wType", "f32"],
    ["dx", f32s(96)],
  ]),
  matmulWeightGrad: products([
    ["dy", f32s(15)],
    ["x", f32s(96)],
    ["dw", f32s(160)],
  ]),
  embedding: [
    ["ids", ids],
    ["w", f32s(5 * 7)],
    ["wType", "f32"],
    ["y", f32s(3 * 7)],
    ["cols", 7],
    ["vocab", 5],
  ],
  embeddingGrad: [
    ["ids", ids],
    ["dy", f32s(3 * 7)],
    ["dw", f32s(5 * 7)],
    ["cols", 7],
    ["vocab", 5],
  ],
  rmsNorm: [
    ["x", f32s(14)],
    ["w", f32s(7)],
    ["y", f32s(14)],
    ["rstd", f32s(2)],
    ["rows", 2],
    ["cols", 7],
    ["eps", 1e-5],
    ["offset", 1],
  ],
  rmsNormGrad: [
    ["dy", f32s(14)],
    ["x", f32s(14)],
    ["w", f32s(7)],
    ["rstd", f32s(2)],
    ["dx", f32s(14)],
    ["rows", 2],
    ["cols", 7],
    ["offset", 1],
    ["accumulate", true],
  ],
  rmsNormWeightGrad: [
    ["dy", f32s(14)],
    ["x", f32s(14)],
    ["rstd", f32s(2)],
    ["dw", f32s(7)],
    ["rows", 2],
    ["cols", 7],
    ["accumulate", true],
  ],
  layerNorm: [
    ["x", f32s(14)],
    ["w", f32s(7)],
    ["b", f32s(7)],
    ["y", f32s(14)],
    ["mean", f32s(2)],
    ["rstd", f32s(2)],
    ["rows", 2],
    ["cols", 7],
    ["eps", 1e-5],
  ],
  layerNormGrad: [
    ["dy", f32s(14)],
    ["x", f32s(14)],
    ["w", f32s(7)],
    ["mean", f32s(2)],
    ["rstd", f32s(2)],
    ["dx", f32s(14)],
    ["rows", 2],
    ["cols", 7],
    ["accumulate", true],
  ],
  layerNormWeightGrad: [
    ["dy", f32s(14)],
    ["x", f32s(14)],
    ["mean", f32s(2)],
    ["rstd", f32s(2)],
    ["dw", f32s(7)],
    ["rows", 2],
    ["cols", 7],
    ["accumulate", true],
  ],
  rope: [
    ["x", f32s(3 * 2 * 6)],
    ["y", f32s(3 * 2 * 6)],
    ["table", f32s(5 * 6)],
    ["positions", ids],
    ["tableRows", 5],
    ["heads", 2],
    ["headDim", 6],
    ["inverse", false],
  ],
  attention: [
    ["q", q],
    ["k", k],
    ["v", k],
    ["o", q],
    ["lse", lse],
    ["segments", segments],
    ["shape", shape],
    ["compute", "f32"],
  ],
  attentionGrad: [
    ["q", q],
    ["k", k],
    ["v", k],
    ["o", q],
    ["lse", lse],
    ["dout", q],
    ["dq", q],
    ["dk", k],
    ["dv", k],
    ["segments", segments],
    ["shape", shape],
    ["compute", "f32"],
  ],
  crossEntropy: [
    ["logits", f32s(15)],
    ["targets", ids],
    ["losses", f32s(3)],
    ["vocab", 5],
    ["smoothing", 0.1],
    ["gradient", true],
  ],
  sample: [
    ["logits", f32s(5)],
    ["draws", Float64Array.of(0.7, 0.9, 3, 1.1, 0.5, 1)],
    ["seen", Int32Array.of(0, 4)],
    ["y", f32s(6)],
    ["rows", 1],
    ["vocab", 5],
    ["top", 2],
  ],
  fill: [
    ["y", f32s(9)],
    ["value", 1],
    ["count", 9],
  ],
  copy: [
    ["x", f32s(9)],
    ["y", f32s(9)],
    ["count", 9],
  ],
  convert: [
    ["x", f32s(9)],
    ["xType", "f32"],
    ["y", f32s(9)],
    ["yType", "f32"],
    ["count", 9],
  ],
  quantize: [
    ["x", f32s(128)],
    ["xType", "f32"],
    ["y", f32s(18)],
    ["yType", "nf4_f32"],
    ["rows", 2],
    ["cols", 64],
  ],
  add: [
    ["a", f32s(9)],
    ["b", f32s(9)],
    ["y", f32s(9)],
    ["count", 9],
  ],
  scale: [
    ["x", f32s(9)],
    ["y", f32s(9)],
    ["scale", 2],
    ["count", 9],
    ["accumulate", false],
  ],
  addBias: [
    ["y", f32s(14)],
    ["bias", f32s(7)],
    ["rows", 2],
    ["cols", 7],
  ],
  biasGrad: [
    ["dy", f32s(14)],
    ["dbias", f32s(7)],
    ["rows", 2],
    ["cols", 7],
    ["accumulate", false],
  ],
  activation: [
    ["x", f32s(9)],
    ["y", f32s(9)],
    ["kind", "gelu"],
    ["count", 9],
  ],
  activationGrad: [
    ["dy", f32s(9)],
    ["x", f32s(9)],
    ["dx", f32s(9)],
    ["kind", "tanh"],
    ["count", 9],
    ["accumulate", true],
  ],
  gated: [
    ["gate", f32s(9)],
    ["up", f32s(9)],
    ["y", f32s(9)],
    ["kind", "silu"],
    ["count", 9],
  ],
  gatedGrad: [
    ["dy", f32s(9)],
    ["gate", f32s(9)],
    ["up", f32s(9)],
    ["dgate", f32s(9)],
    ["dup", f32s(9)],
    ["kind", "gelu_tanh"],
    ["count", 9],
  ],
  mul: [
    ["a", f32s(9)],
    ["b", f32s(9)],
    ["y", f32s(9)],
    ["count", 9],
    ["accumulate", true],
  ],
  copyColumns: [
    ["x", f32s(2 * 7)],
    ["xCols", 7],
    ["xStart", 2],
    ["y", f32s(2 * 9)],
    ["yCols", 9],
    ["yStart", 4],
    ["rows", 2],
    ["cols", 5],
    ["accumulate", true],
  ],
  dropout: [
    ["x", f32s(9)],
    ["y", f32s(9)],
    ["p", 0.5],
    ["seed", 1n],
    ["count", 9],
    ["accumulate", false],
  ],
  addUniform: [
    ["x", f32s(3 * 9)],
    ["scales", Float64Array.of(0.5, 2, 0)],
    ["y", f32s(3 * 9)],
    ["seed", 1n],
    ["rows", 3],
    ["cols", 9],
  ],
  gatherRows: [
    ["x", f32s(5 * 7)],
    ["indices", ids],
    ["y", f32s(3 * 7)],
    ["xRows", 5],
    ["cols", 7],
  ],
  scatterRows: [
    ["x", f32s(3 * 7)],
    ["indices", ids],
    ["y", f32s(5 * 7)],
    ["yRows", 5],
    ["cols", 7],
    ["accumulate", true],
  ],
  sum: [
    ["x", f32s(9)],
    ["y", f32s(1)],
    ["count", 9],
    ["accumulate", false],
  ],
  sumSquares: [
    ["x", f32s(9)],
    ["y", f32s(1)],
    ["count", 9],
    ["accumulate", false],
  ],
  scaleRows: [
    ["x", f32s(14)],
    ["scale", f32s(2)],
    ["y", f32s(14)],
    ["rows", 2],
    ["cols", 7],
  ],
  scaleColumns: [
    ["x", f32s(14)],
    ["scale", f32s(7)],
    ["y", f32s(14)],
    ["rows", 2],
    ["cols", 7],
  ],
  rowDots: [
    ["a", f32s(14)],
    ["b", f32s(14)],
    ["y", f32s(2)],
    ["rows", 2],
    ["cols", 7],
    ["accumulate", true],
  ],
  columnDots: [
    ["a", f32s(14)],
    ["b", f32s(14)],
    ["y", f32s(7)],
    ["rows", 2],
    ["cols", 7],
    ["accumulate", true],
  ],
  transpose: [
    ["x", f32s(14)],
    ["y", f32s(14)],
    ["rows", 2],
    ["cols", 7],
  ],
  squareRoot: [
    ["x", f32s(14)],
    ["y", f32s(14)],
    ["count", 14],
  ],
  divideSqrt: [
    ["x", f32s(14)],
    ["squares", f32s(14)],
    ["y", f32s(14)],
    ["count", 14],
  ],
  svd: [
    ["x", f32s(14)],
    ["u", f32s(4)],
    ["s", f32s(2)],
    ["rows", 2],
    ["cols", 7],
  ],
  adamw: [
    ["p", f32s(9)],
    ["g", f32s(9)],
    ["m", f32s(9)],
    ["v", f32s(9)],
    ["flaws", f32s(1)],
    ["count", 9],
    ["step", step],
  ],
  adamw8bit: [
    ["p", f32s(257)],
    ["g", f32s(257)],
    ["m", f32s(130)],
    ["v", f32s(130)],
    ["flaws", f32s(1)],
    ["count", 257],
    ["step", step],
  ],
  blend: [
    ["x", f32s(9)],
    ["y", f32s(9)],
    ["flaws", f32s(1)],
    ["count", 9],
    ["keep", 0.9],
    ["add", 0.1],
  ],
  limitRms: [
    ["x", f32s(9)],
    ["squares", f32s(1)],
    ["count", 9],
  ],
  lion: [
    ["p", f32s(9)],
    ["g", f32s(9)],
    ["m", f32s(9)],
    ["flaws", f32s(1)],
    ["count", 9],
    ["step", lionStep],
  ],
};

/** Arguments of kernels that are numbers, but not sizes. */
export const realNumbers = new Set(["scale", "eps", "value", "p", "offset", "keep", "add", "smoothing"]);

/** The same of what else the engine offers. */
export const otherCalls: Record<Exclude<keyof NativeEngine, keyof typeof kernelCalls>, Arguments> = {
  alloc: [["bytes", 64]],
  free: [["id", f32s(4)]],
  view: [
    ["id", f32s(4)],
    ["byteOffset", 4],
    ["bytes", 8],
  ],
  write: [
    ["id", f32s(4)],
    ["byteOffset", 4],
    ["source", Float32Array.of(1, 2)],
  ],
  read: [
    ["id", f32s(4)],
    ["byteOffset", 4],
    ["target", Float32Array.of(1, 2)],
  ],
  sync: [],
  info: [],
  stats: [],
  resetPeak: [],
  setIsa: [["isa", "portable"]],
  setThreads: [["threads", 2]],
  profile: [],
  peakFlops: [["compute", "f32"]],
};
