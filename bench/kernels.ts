import { bytesOf, type DType } from "../src/engine/dtype.js";
import type { ComputeType, Id, NativeEngine } from "../src/engine/kernels.js";

/** Seconds of the fastest of the runs that fit in 150 ms, after one to warm up. */
export async function fastestSeconds(engine: NativeEngine, run: () => void): Promise<number> {
  let bestMs = Number.POSITIVE_INFINITY;
  const endMs = performance.now() + 150;
  run();
  await engine.sync();
  do {
    const startMs = performance.now();
    run();
    await engine.sync();
    bestMs = Math.min(bestMs, performance.now() - startMs);
  } while (performance.now() < endMs);
  return bestMs / 1000;
}

/** A block of small numbers, whatever type they are read as. */
export function filled(engine: NativeEngine, bytes: number): Id {
  const id = engine.alloc(bytes);
  engine.write(id, 0, new Uint8Array(bytes).fill(0x11));
  return id;
}

export interface Product {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly wType: DType;
  readonly compute: ComputeType;
}

export interface ProductTimes {
  /** Seconds of y = x Wᵀ, dx = dy W and dw = dyᵀ x. */
  readonly forward: number;
  readonly inputGrad: number;
  readonly weightGrad: number;
  /** Of each of the three. */
  readonly flops: number;
  /** The machine's limit, measured just before, because other work on the machine moves both. */
  readonly peakFlops: number;
}

/** Times x (m, k) · W (n, k)ᵀ and its two gradients. */
export async function measureProduct(engine: NativeEngine, { m, n, k, wType, compute }: Product): Promise<ProductTimes> {
  const [x, w, y, dw] = [m * k * 4, bytesOf(wType, n * k), m * n * 4, n * k * 4].map((bytes) => filled(engine, bytes)) as [
    Id,
    Id,
    Id,
    Id,
  ];
  const peakFlops = engine.peakFlops(compute);
  const forward = await fastestSeconds(engine, () => engine.matmul(x, w, wType, y, m, n, k, 1, false, compute));
  const inputGrad = await fastestSeconds(engine, () => engine.matmulInputGrad(y, w, wType, x, m, n, k, 1, false, compute));
  const weightGrad = await fastestSeconds(engine, () => engine.matmulWeightGrad(y, x, dw, m, n, k, 1, false, compute));
  for (const id of [x, w, y, dw]) engine.free(id);
  return { forward, inputGrad, weightGrad, flops: 2 * m * n * k, peakFlops };
}

/** The machine's limits, with all threads of the engine. */
export interface Limits {
  /** Fused operations counted as two. */
  readonly flops: number;
  readonly bytesPerSecond: number;
}

/** The limit of memory is that of the better of reading, and of reading and writing, 128 MiB: more than caches hold. */
export async function measureLimits(engine: NativeEngine, compute: ComputeType): Promise<Limits> {
  const bytes = 2 ** 27;
  const [x, y] = [filled(engine, bytes), filled(engine, bytes)];
  const reading = bytes / (await fastestSeconds(engine, () => engine.sum(x, y, bytes / 4, false)));
  const copying = (2 * bytes) / (await fastestSeconds(engine, () => engine.copy(x, y, bytes / 4)));
  for (const id of [x, y]) engine.free(id);
  return { flops: engine.peakFlops(compute), bytesPerSecond: Math.max(reading, copying) };
}
