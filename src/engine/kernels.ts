import type { DType } from "./dtype.js";

/**
 * The whole native surface on one page.
 *
 * The engine is a stream: a call checks its arguments, queues the work and returns at once; the engine's threads run the queue in
 * order, off the JavaScript thread. Only `read` and `sync` wait, and they return promises. Memory is freed in stream
 * order too, so a block may be freed right after the last call that uses it.
 *
 * Every array is an `Id`: a block of native memory. A block that is too small for the sizes given is a RangeError before anything is
 * queued. Arrays are row-major and dense; they hold f32 unless a `dtype` says otherwise. Indices (token ids, positions, row numbers) are
 * Int32Arrays: they are copied and range-checked by the call. `accumulate` adds to what stands in the output instead of replacing it.
 * No result depends on the number of threads.
 *
 * The same interface is implemented by the symbolic device (src/core/symbolic.ts), which allocates and computes nothing.
 */
export interface Kernels extends Memory, Products, Layers, Sampling, Elementwise, Matrices, Training {}

/** A block of the engine's memory. Numbers are never reused while a block is alive. */
export type Id = number;

/** How matrix products multiply: exact f32, or operands rounded to bf16 with f32 sums. */
export type ComputeType = "f32" | "bf16";

export interface Memory {
  /** A new block, 64-byte aligned, contents undefined. Throws EngineError if the system has no memory left. */
  alloc(bytes: number): Id;
  free(id: Id): void;
  /** Part of a block as a block of its own; it is freed by itself and keeps the memory alive. */
  view(id: Id, byteOffset: number, bytes: number): Id;
  /** Copies `source` into the block, in stream order; `source` may change as soon as the call returns. */
  write(id: Id, byteOffset: number, source: ArrayBufferView): void;
  /** Copies from the block into `target` when all work queued before is done. */
  read(id: Id, byteOffset: number, target: ArrayBufferView): Promise<void>;
  /** Resolves when all work queued before is done. */
  sync(): Promise<void>;
}

/** Matrix products. W is (N, K) as Hugging Face stores Linear weights, in any DType with whole blocks in a row. */
export interface Products {
  /** y (M, N) = scale · x (M, K) Wᵀ */
  matmul(
    x: Id,
    w: Id,
    wType: DType,
    y: Id,
    m: number,
    n: number,
    k: number,
    scale: number,
    accumulate: boolean,
    compute: ComputeType,
  ): void;
  /** dx (M, K) = scale · dy (M, N) W */
  matmulInputGrad(
    dy: Id,
    w: Id,
    wType: DType,
    dx: Id,
    m: number,
    n: number,
    k: number,
    scale: number,
    accumulate: boolean,
    compute: ComputeType,
  ): void;
  /** dw (N, K) f32 = scale · dyᵀ x */
  matmulWeightGrad(
    dy: Id,
    x: Id,
    dw: Id,
    m: number,
    n: number,
    k: number,
    scale: number,
    accumulate: boolean,
    compute: ComputeType,
  ): void;
}

export interface Layers {
  /** y (rows, cols) = w[ids]: rows of w (vocab, cols), expanded to f32. */
  embedding(ids: Int32Array, w: Id, wType: DType, y: Id, cols: number, vocab: number): void;
  /** dw (vocab, cols)[ids] += dy (rows, cols); repeated ids add up in order. */
  embeddingGrad(ids: Int32Array, dy: Id, dw: Id, cols: number, vocab: number): void;
  /** y = x · rstd · (w + offset), rstd (rows) = 1 / sqrt(mean(x²) + eps). */
  rmsNorm(x: Id, w: Id, y: Id, rstd: Id, rows: number, cols: number, eps: number, offset: number): void;
  rmsNormGrad(dy: Id, x: Id, w: Id, rstd: Id, dx: Id, rows: number, cols: number, offset: number, accumulate: boolean): void;
  /** dw (cols) = Σ over rows of dy · x · rstd */
  rmsNormWeightGrad(dy: Id, x: Id, rstd: Id, dw: Id, rows: number, cols: number, accumulate: boolean): void;
  /** y = (x − mean) · rstd · w + b; mean and rstd = 1 / sqrt(mean((x − mean)²) + eps) are (rows). */
  layerNorm(x: Id, w: Id, b: Id, y: Id, mean: Id, rstd: Id, rows: number, cols: number, eps: number): void;
  layerNormGrad(dy: Id, x: Id, w: Id, mean: Id, rstd: Id, dx: Id, rows: number, cols: number, accumulate: boolean): void;
  /** dw (cols) = Σ over rows of dy · (x − mean) · rstd; the gradient of b is `biasGrad`. */
  layerNormWeightGrad(dy: Id, x: Id, mean: Id, rstd: Id, dw: Id, rows: number, cols: number, accumulate: boolean): void;
  /**
   * Rotary embedding of x (rows, heads, headDim) into y (may be x): feature i pairs with i + headDim/2, as in Hugging Face.
   * `table` (tableRows, 2, headDim/2) holds cosines, then sines, of each position. `inverse` rotates back (the gradient).
   */
  rope(x: Id, y: Id, table: Id, positions: Int32Array, tableRows: number, heads: number, headDim: number, inverse: boolean): void;
  /**
   * Softmax attention that never holds T × T. q, o (qRows, heads, headDim); k, v (kRows, kvHeads, headDim); lse (qRows, heads).
   * `segments` lists (qStart, qLength, kStart, kLength, prefixStart, prefixLength) of each sequence, whose keys are the rows of k of its prefix
   * and then its own; a query attends only inside its own segment. Causal: query i sees keys j ≤ i + prefixLength + kLength − qLength.
   * `window` > 0 lets it see only the last `window` of these. Segments never share rows of q; where a gradient is wanted, they may share rows
   * of k only as a prefix. With `compute` bf16, products round their operands on the tier avx512bf16, but for a few
   * queries; elsewhere they are exact. `dropout` is applied to the probabilities, by masks that follow from `seed`, the row of q, the head and
   * the key's place: its number in the prefix, or in its own plus prefixLength rounded up to 64.
   */
  attention(q: Id, k: Id, v: Id, o: Id, lse: Id, segments: Int32Array, shape: AttentionShape, compute: ComputeType): void;
  /** dq, dk, dv are replaced, not accumulated; rows in no segment become 0. */
  attentionGrad(
    q: Id,
    k: Id,
    v: Id,
    o: Id,
    lse: Id,
    dout: Id,
    dq: Id,
    dk: Id,
    dv: Id,
    segments: Int32Array,
    shape: AttentionShape,
    compute: ComputeType,
  ): void;
  /**
   * losses (rows) = −Σ wanted · log softmax(logits (rows, vocab)), where `wanted` is s / vocab everywhere and 1 − s more at the target, with s the
   * smoothing, from 0 to 1. With `gradient`, logits become softmax − wanted.
   */
  crossEntropy(logits: Id, targets: Int32Array, losses: Id, vocab: number, smoothing: number, gradient: boolean): void;
}

export interface Sampling {
  /**
   * Draws a token from each row of logits (rows, vocab), which end as they began. `draws` (rows, 6) says how: temperature (0: the largest
   * logit, the first of several), top-p, top-k (0: all), repetition penalty, a uniform number in [0, 1), and the temperature T of the
   * log-probabilities, 0 where none are wanted. `seen` lists places in logits to which the penalty applies, each once, in the order of rows.
   * Tokens are drawn in the order of falling logits, then of ids: the first where the chances so far reach the uniform number.
   * y (rows, 1 + top, 2): the token and its log-probability, then the tokens of the `top` largest logits and theirs; all log-probabilities are
   * log softmax(logits / T), before penalty and cuts. Where a logit is NaN or the largest is infinite, the token is −1 and the number beside it
   * that logit. A row's results depend on nothing but the row.
   */
  sample(logits: Id, draws: Float64Array, seen: Int32Array, y: Id, rows: number, vocab: number, top: number): void;
}

export interface AttentionShape {
  readonly qRows: number;
  readonly kRows: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Scores are q · k times this. */
  readonly scale: number;
  readonly causal: boolean;
  /** Number of keys that a query sees at most; 0 for all. */
  readonly window: number;
  /** The chance of a probability to be dropped, less than 1; the seed says which are. */
  readonly dropout: number;
  readonly seed: bigint;
}

/** An element-wise function: gelu is x · Φ(x), gelu_tanh its approximation by tanh, silu is x / (1 + e⁻ˣ). */
export type Activation = "relu" | "gelu" | "gelu_tanh" | "silu" | "tanh" | "sigmoid";

export interface Elementwise {
  fill(y: Id, value: number, count: number): void;
  copy(x: Id, y: Id, count: number): void;
  /** Between number types, and from blocks to f32. */
  convert(x: Id, xType: DType, y: Id, yType: DType, count: number): void;
  /**
   * Numbers x (rows, cols) to blocks. Those of nf4, fp4, nf4_f32 and fp4_f32 get the codes that bitsandbytes gives the same numbers in f32 on
   * a CPU; those of q8_0, q4_0, q4_1, q5_0, q4_k and q6_k the bits that ggml gives them without an importance matrix.
   */
  quantize(x: Id, xType: DType, y: Id, yType: DType, rows: number, cols: number): void;
  /** y = a + b; y may be a or b. */
  add(a: Id, b: Id, y: Id, count: number): void;
  /** y = scale · x, or y += scale · x; y may be x. */
  scale(x: Id, y: Id, scale: number, count: number, accumulate: boolean): void;
  /** y = a · b; y may be a or b. */
  mul(a: Id, b: Id, y: Id, count: number, accumulate: boolean): void;
  /** y (rows, cols) += bias (cols) */
  addBias(y: Id, bias: Id, rows: number, cols: number): void;
  /** dbias (cols) = Σ over rows of dy */
  biasGrad(dy: Id, dbias: Id, rows: number, cols: number, accumulate: boolean): void;
  /** y = f(x); y may be x. */
  activation(x: Id, y: Id, kind: Activation, count: number): void;
  /** dx = dy · f′(x); dx may be dy or x. */
  activationGrad(dy: Id, x: Id, dx: Id, kind: Activation, count: number, accumulate: boolean): void;
  /** y = f(gate) · up */
  gated(gate: Id, up: Id, y: Id, kind: Activation, count: number): void;
  /** dgate and dup are replaced; they may be gate and up themselves. */
  gatedGrad(dy: Id, gate: Id, up: Id, dgate: Id, dup: Id, kind: Activation, count: number): void;
  /** y = x / (1 − p) where Philox4x32-10(seed, element) keeps it, else 0. The gradient is the same call on dy. */
  dropout(x: Id, y: Id, p: number, seed: bigint, count: number, accumulate: boolean): void;
  /** y = x + scales[row] · u, with u uniform in [−1, 1) by Philox4x32-10(seed, row, column). x, y (rows, cols); y may be x. */
  addUniform(x: Id, scales: Float64Array, y: Id, seed: bigint, rows: number, cols: number): void;
  /** `cols` columns of y (rows, yCols) from yStart = those of x (rows, xCols) from xStart. */
  copyColumns(
    x: Id,
    xCols: number,
    xStart: number,
    y: Id,
    yCols: number,
    yStart: number,
    rows: number,
    cols: number,
    accumulate: boolean,
  ): void;
  /** y (indices, cols) = x (xRows, cols)[indices] */
  gatherRows(x: Id, indices: Int32Array, y: Id, xRows: number, cols: number): void;
  /** y (yRows, cols)[indices] = x (indices, cols), or += ; with += repeated indices add up in order. */
  scatterRows(x: Id, indices: Int32Array, y: Id, yRows: number, cols: number, accumulate: boolean): void;
  /** y (1) = Σ x, summed in f64 over fixed chunks. */
  sum(x: Id, y: Id, count: number, accumulate: boolean): void;
  /** y (1) = Σ x², summed in f64 over fixed chunks. */
  sumSquares(x: Id, y: Id, count: number, accumulate: boolean): void;
}

export interface Matrices {
  /** y (rows, cols) = x · scale (rows), each row with its own factor; y may be x. */
  scaleRows(x: Id, scale: Id, y: Id, rows: number, cols: number): void;
  /** y (rows, cols) = x · scale (cols), each column with its own factor; y may be x. */
  scaleColumns(x: Id, scale: Id, y: Id, rows: number, cols: number): void;
  /** y (rows) = Σ over columns of a · b */
  rowDots(a: Id, b: Id, y: Id, rows: number, cols: number, accumulate: boolean): void;
  /** y (cols) = Σ over rows of a · b */
  columnDots(a: Id, b: Id, y: Id, rows: number, cols: number, accumulate: boolean): void;
  /** y (cols, rows) = xᵀ of x (rows, cols) */
  transpose(x: Id, y: Id, rows: number, cols: number): void;
  /** y = √x; y may be x. */
  squareRoot(x: Id, y: Id, count: number): void;
  /** y = x / √squares, 0 where squares is not above 0; y may be x or squares. */
  divideSqrt(x: Id, squares: Id, y: Id, count: number): void;
  /**
   * x (rows, cols) = uᵀ diag(s) v by rotating pairs of rows (one-sided Jacobi): v takes x's place, its rows of length 1 or 0; s (rows) falls;
   * u is (rows, rows). Quick for few rows.
   */
  svd(x: Id, u: Id, s: Id, rows: number, cols: number): void;
}

export interface Training {
  /**
   * One AdamW step on f32 parameters p with moments m and v, gradient g · gradScale:
   * p −= lr · weightDecay · p;  p −= lr · (m / c1) / (sqrt(v / c2) + eps)  with c = 1 − βᵗ.
   * flaws (1) += how many numbers of p then are not finite, or have a moment that is not.
   */
  adamw(p: Id, g: Id, m: Id, v: Id, flaws: Id, count: number, step: AdamWStep): void;
  /**
   * The same with moments in 8 bits, as bitsandbytes keeps them: a block of 256 is an absmax in f32 and 256 codes, 260 bytes. A code's
   * number in the dynamic map (for v in its positive one) times absmax is the moment. Blocks of zero bytes are moments of 0.
   */
  adamw8bit(p: Id, g: Id, m: Id, v: Id, flaws: Id, count: number, step: AdamWStep): void;
  /** y = keep · y + add · x; flaws (1) += how many numbers of y then are not finite. x may be y. */
  blend(x: Id, y: Id, flaws: Id, count: number, keep: number, add: number): void;
  /** x /= max(1, √(squares / count)): `squares` (1) is Σ x², so that the root mean square of x is 1 at most. */
  limitRms(x: Id, squares: Id, count: number): void;
  /**
   * One step of Lion on f32 parameters p with momentum m and gradient g′ = g · gradScale:
   * p −= lr · weightDecay · p;  p −= lr · sign(β₁ m + (1 − β₁) g′);  m = β₂ m + (1 − β₂) g′. Flaws as in `adamw`.
   */
  lion(p: Id, g: Id, m: Id, flaws: Id, count: number, step: LionStep): void;
}

export type LionStep = Pick<AdamWStep, "lr" | "beta1" | "beta2" | "weightDecay" | "gradScale">;

export interface AdamWStep {
  readonly lr: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
  /** 1 − β1ᵗ and 1 − β2ᵗ of this step. */
  readonly correction1: number;
  readonly correction2: number;
  readonly gradScale: number;
}

export type Isa = "portable" | "avx2" | "avx512" | "avx512bf16" | "amx";

export interface EngineInfo {
  /** The tier in use. */
  readonly isa: Isa;
  /** Tiers that this machine can run, lowest first. */
  readonly tiers: readonly Isa[];
  readonly threads: number;
  /** What CPUID and the system report, for `attune doctor`. */
  readonly cpu: string;
  readonly features: readonly string[];
}

export interface EngineStats {
  /** Bytes in live blocks, as asked for (rounded up to 64 each). */
  readonly liveBytes: number;
  readonly peakLiveBytes: number;
  /** Bytes taken from the system for blocks and for scratch. */
  readonly reservedBytes: number;
}

export interface KernelProfile {
  readonly name: string;
  readonly calls: number;
  readonly seconds: number;
}

/** What the addon exports: the kernels, and the few switches that concern the whole process. */
export interface NativeEngine extends Kernels {
  info(): EngineInfo;
  stats(): EngineStats;
  resetPeak(): void;
  /** Waits for the stream to run dry, then changes the tier; for tests and benchmarks. Throws if the machine cannot run it. */
  setIsa(isa: Isa): void;
  setThreads(threads: number): void;
  /** Time by kernel since the last call; empty unless ATTUNE_PROFILE=1. */
  profile(): KernelProfile[];
  /**
   * Waits for the stream, then measures what all threads can do at most: operations a second, fused ones counted as two, of the instructions
   * that products of this type use. Where there are none for bf16, these are f32's.
   */
  peakFlops(compute: ComputeType): number;
}
