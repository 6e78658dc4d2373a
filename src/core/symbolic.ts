import { bytesOf, type DType } from "../engine/dtype.js";
import type { AttentionShape, ComputeType, Id, Kernels } from "../engine/kernels.js";
import { EngineError } from "../errors.js";
import { BlockMemory, type Chunk } from "./block-memory.js";
import type { Device } from "./device.js";

/** What work would cost, found by running it on shapes alone. */
export interface Cost extends KernelCost {
  /** Bytes in live blocks, now and at the highest point. */
  readonly liveBytes: number;
  readonly peakBytes: number;
  /**
   * The most memory that the engine takes from the system: for these blocks, as its allocator lays them out, and for the
   * workspace of its products.
   */
  readonly residentBytes: number;
  /** Each kernel's part, under its name in `Kernels`. */
  readonly byKernel: ReadonlyMap<string, KernelCost>;
}

export interface KernelCost {
  /** Multiplications and additions, each counted as one. */
  readonly flops: number;
  /** Bytes that the kernel reads and writes, each operand once. */
  readonly bytesMoved: number;
}

/**
 * A device without memory or arithmetic. The same TypeScript that trains a model runs on it, so what it counts cannot drift from what
 * training does; a kernel without a cost does not compile.
 */
export class SymbolicDevice implements Device {
  readonly compute: ComputeType;
  readonly kernels: Kernels;
  readonly isSymbolic = true;
  readonly #counter = new Counter();

  constructor(compute: ComputeType = "f32") {
    this.compute = compute;
    this.kernels = attributed(symbolicKernels(this.#counter, compute === "bf16" ? 2 : 4), this.#counter);
  }

  get cost(): Cost {
    const { flops, bytesMoved, memory, workspaceBytes, byKernel } = this.#counter;
    return {
      ...{ flops, bytesMoved, liveBytes: memory.live, peakBytes: memory.peak },
      ...{ residentBytes: memory.residentPeak + workspaceBytes, byKernel: new Map(byKernel) },
    };
  }

  /** Forgets flops and bytes moved, and takes the live bytes as the new peak. */
  reset(): void {
    this.#counter.reset();
  }
}

const F32 = 4;
/** How many lines of both factors, and how much of the depth that is summed over, a product packs at a time (engine/kernels/gemm.inl). */
const PANEL_ROWS = 4096;
const PANEL_COLUMNS = 2048;
const PANEL_DEPTH = 640;
/** How many times, about, the singular value decomposition goes over all pairs of rows. */
const JACOBI_SWEEPS = 8;

class Counter {
  flops = 0;
  bytesMoved = 0;
  readonly memory = new BlockMemory();
  /** Packed panels of the left factor and of the right one, of which the largest of all products stay. */
  readonly #panels = [0, 0];
  readonly byKernel = new Map<string, KernelCost>();
  /** The kernel whose work is being counted. */
  kernel = "";
  readonly #blocks = new Map<Id, Chunk>();
  #lastId = 0;

  reset(): void {
    this.flops = 0;
    this.bytesMoved = 0;
    this.memory.resetPeak();
    this.byKernel.clear();
  }

  get workspaceBytes(): number {
    return this.#panels.reduce((sum, bytes) => sum + bytes, 0);
  }

  /** The panels that engine/kernels/gemm.inl packs of factors (rows, depth) and (depth, columns). */
  pack(rows: number, columns: number, depth: number, elementBytes: number): void {
    const depthBytes = Math.min(depth, PANEL_DEPTH) * elementBytes;
    for (const [i, lines] of [Math.min(rows, PANEL_ROWS), Math.min(columns, PANEL_COLUMNS)].entries())
      this.#panels[i] = Math.max(this.#panels[i]!, lines * depthBytes);
  }

  work(flops: number, bytesMoved: number): void {
    this.flops += flops;
    this.bytesMoved += bytesMoved;
    const before = this.byKernel.get(this.kernel) ?? { flops: 0, bytesMoved: 0 };
    this.byKernel.set(this.kernel, { flops: before.flops + flops, bytesMoved: before.bytesMoved + bytesMoved });
  }

  open(bytes: number): Id {
    this.#blocks.set(++this.#lastId, this.memory.take(bytes));
    return this.#lastId;
  }

  view(id: Id): Id {
    const chunk = this.#chunkOf(id);
    chunk.holders++;
    this.#blocks.set(++this.#lastId, chunk);
    return this.#lastId;
  }

  close(id: Id): void {
    this.memory.giveBack(this.#chunkOf(id));
    this.#blocks.delete(id);
  }

  #chunkOf(id: Id): Chunk {
    const chunk = this.#blocks.get(id);
    if (chunk === undefined) throw new EngineError(`symbolic: there is no block ${id}, or no longer`);
    return chunk;
  }
}

/** The same kernels; each tells the counter that what follows is its work. */
function attributed(kernels: Kernels, counter: Counter): Kernels {
  return new Proxy(kernels, {
    get(target, name) {
      const kernel = Reflect.get(target, name);
      return (...args: unknown[]) => {
        counter.kernel = String(name);
        return Reflect.apply(kernel, target, args);
      };
    },
  });
}

function symbolicKernels(counter: Counter, elementBytes: number): Kernels {
  /** `flops` and `arrays` f32 elements read or written, per element. */
  const each = (count: number, flops: number, arrays: number) => counter.work(flops * count, arrays * count * F32);
  /** y (m, n) = x (m, k) · w (k, n), in whatever order; the sum goes over `depth`, and the panels have `rows` and `columns`. */
  const product = (wType: DType, m: number, n: number, k: number, [rows, columns, depth]: readonly [number, number, number]) => {
    counter.pack(rows, columns, depth, elementBytes);
    counter.work(2 * m * n * k, bytesOf(wType, n * k) + F32 * m * (n + k));
  };
  const attended = (segments: Int32Array, { causal, window }: AttentionShape) => {
    let pairs = 0;
    for (let s = 0; s < segments.length; s += 6)
      pairs += attendedPairs(segments[s + 1]!, segments[s + 5]! + segments[s + 3]!, causal, window);
    return pairs;
  };

  return {
    alloc: (bytes) => counter.open(bytes),
    free: (id) => counter.close(id),
    view: (id) => counter.view(id),
    write: (_id, _offset, source) => counter.work(0, source.byteLength),
    read: async (_id, _offset, target) => counter.work(0, target.byteLength),
    sync: async () => {},

    matmul: (_x, _w, wType, _y, m, n, k) => product(wType, m, n, k, [m, n, k]),
    matmulInputGrad: (_dy, _w, wType, _dx, m, n, k) => product(wType, m, n, k, [m, k, n]),
    matmulWeightGrad: (_dy, _x, _dw, m, n, k) => product("f32", m, n, k, [n, k, m]),

    embedding: (ids, _w, wType, _y, cols) => counter.work(0, ids.length * (bytesOf(wType, cols) + F32 * cols)),
    embeddingGrad: (ids, _dy, _dw, cols) => each(ids.length * cols, 1, 3),
    rmsNorm: (_x, _w, _y, _rstd, rows, cols) => each(rows * cols, 4, 2),
    rmsNormGrad: (_dy, _x, _w, _rstd, _dx, rows, cols) => each(rows * cols, 8, 3),
    rmsNormWeightGrad: (_dy, _x, _rstd, _dw, rows, cols) => each(rows * cols, 3, 2),
    layerNorm: (_x, _w, _b, _y, _mean, _rstd, rows, cols) => each(rows * cols, 7, 2),
    layerNormGrad: (_dy, _x, _w, _mean, _rstd, _dx, rows, cols) => each(rows * cols, 13, 3),
    layerNormWeightGrad: (_dy, _x, _mean, _rstd, _dw, rows, cols) => each(rows * cols, 4, 2),
    rope: (_x, _y, _table, positions, _rows, heads, headDim) => each(positions.length * heads * headDim, 3, 2),
    attention: (_q, _k, _v, _o, _lse, segments, shape) => {
      const { heads, kvHeads, headDim, qRows, kRows } = shape;
      counter.work(4 * attended(segments, shape) * heads * headDim, F32 * headDim * (2 * qRows * heads + 2 * kRows * kvHeads));
    },
    attentionGrad: (_q, _k, _v, _o, _lse, _dout, _dq, _dk, _dv, segments, shape) => {
      const { heads, kvHeads, headDim, qRows, kRows } = shape;
      counter.work(10 * attended(segments, shape) * heads * headDim, F32 * headDim * (4 * qRows * heads + 4 * kRows * kvHeads));
    },
    crossEntropy: (_logits, targets, _losses, vocab, smoothing, gradient) =>
      each(targets.length * vocab, (gradient ? 6 : 4) + (smoothing > 0 ? 2 : 0), gradient ? 2 : 1),
    sample: (_logits, _draws, _seen, _y, rows, vocab) => each(rows * vocab, 8, 2),

    fill: (_y, _value, count) => each(count, 0, 1),
    copy: (_x, _y, count) => each(count, 0, 2),
    convert: (_x, xType, _y, yType, count) => counter.work(0, bytesOf(xType, count) + bytesOf(yType, count)),
    quantize: (_x, xType, _y, yType, rows, cols) => counter.work(0, bytesOf(xType, rows * cols) + bytesOf(yType, rows * cols)),
    add: (_a, _b, _y, count) => each(count, 1, 3),
    scale: (_x, _y, _scale, count, accumulate) => each(count, accumulate ? 2 : 1, accumulate ? 3 : 2),
    mul: (_a, _b, _y, count, accumulate) => each(count, accumulate ? 2 : 1, accumulate ? 4 : 3),
    addBias: (_y, _bias, rows, cols) => each(rows * cols, 1, 2),
    biasGrad: (_dy, _dbias, rows, cols) => each(rows * cols, 1, 1),
    activation: (_x, _y, _kind, count) => each(count, 4, 2),
    activationGrad: (_dy, _x, _dx, _kind, count, accumulate) => each(count, 8, accumulate ? 4 : 3),
    gated: (_gate, _up, _y, _kind, count) => each(count, 5, 3),
    gatedGrad: (_dy, _gate, _up, _dgate, _dup, _kind, count) => each(count, 10, 5),
    dropout: (_x, _y, _p, _seed, count) => each(count, 1, 2),
    addUniform: (_x, _scales, _y, _seed, rows, cols) => each(rows * cols, 3, 2),
    copyColumns: (_x, _xCols, _xStart, _y, _yCols, _yStart, rows, cols, accumulate) =>
      each(rows * cols, accumulate ? 1 : 0, accumulate ? 3 : 2),
    gatherRows: (_x, indices, _y, _xRows, cols) => each(indices.length * cols, 0, 2),
    scatterRows: (_x, indices, _y, _yRows, cols, accumulate) =>
      each(indices.length * cols, accumulate ? 1 : 0, accumulate ? 3 : 2),
    sum: (_x, _y, count) => each(count, 1, 1),
    sumSquares: (_x, _y, count) => each(count, 2, 1),

    scaleRows: (_x, _scale, _y, rows, cols) => each(rows * cols, 1, 2),
    scaleColumns: (_x, _scale, _y, rows, cols) => each(rows * cols, 1, 2),
    rowDots: (_a, _b, _y, rows, cols) => each(rows * cols, 2, 2),
    columnDots: (_a, _b, _y, rows, cols) => each(rows * cols, 2, 2),
    transpose: (_x, _y, rows, cols) => each(rows * cols, 0, 2),
    squareRoot: (_x, _y, count) => each(count, 1, 2),
    divideSqrt: (_x, _squares, _y, count) => each(count, 2, 3),
    svd: (_x, _u, _s, rows, cols) => each((JACOBI_SWEEPS * rows * rows * (rows + cols)) / 2, 12, 1),

    adamw: (_p, _g, _m, _v, _flaws, count) => each(count, 14, 7),
    blend: (_x, _y, _flaws, count) => each(count, 3, 3),
    limitRms: (_x, _squares, count) => each(count, 1, 2),
    lion: (_p, _g, _m, _flaws, count) => each(count, 10, 5),
    adamw8bit: (_p, _g, _m, _v, _flaws, count) => counter.work(20 * count, count * (3 * F32 + 4)),
  };
}

/** How many (query, key) pairs one segment scores. */
function attendedPairs(queries: number, keys: number, causal: boolean, window: number): number {
  const limit = window > 0 ? window : keys;
  if (!causal) return queries * Math.min(keys, limit);
  let pairs = 0;
  for (let i = 0; i < queries; i++) pairs += Math.min(i + keys - queries + 1, limit);
  return pairs;
}
