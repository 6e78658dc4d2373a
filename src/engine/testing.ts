import assert from "node:assert/strict";
import test from "node:test";
import type { Id, NativeEngine } from "./kernels.js";
import { loadEngine } from "./load.js";

/** Helpers for tests of native code. */

/** Numbers of about normal distribution (a sum of uniform ones), the same for the same seed. */
export function randomFloats(count: number, seed: number, spread = 1): Float32Array {
  const next = randomSource(seed);
  return Float32Array.from({ length: count }, () => (next() + next() + next() + next() - 2) * 1.7 * spread);
}

export function randomIndices(count: number, limit: number, seed: number): Int32Array {
  const next = randomSource(seed);
  return Int32Array.from({ length: count }, () => Math.floor(next() * limit));
}

/** Mulberry32: uniform numbers in [0, 1). */
export function randomSource(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Blocks for one computation; all are freed with `freeAll`. */
export class Blocks {
  readonly #engine: NativeEngine;
  readonly #ids: Id[] = [];

  constructor(engine: NativeEngine) {
    this.#engine = engine;
  }

  of(source: ArrayBufferView): Id {
    const id = this.empty(source.byteLength);
    this.#engine.write(id, 0, source);
    return id;
  }

  /** A block full of 0xFF bytes, which are NaN as f32: what a kernel leaves out shows. */
  empty(bytes: number): Id {
    const id = this.#engine.alloc(bytes);
    this.#ids.push(id);
    this.#engine.write(id, 0, new Uint8Array(bytes).fill(0xff));
    return id;
  }

  async read(id: Id, count: number): Promise<Float32Array> {
    const values = new Float32Array(count);
    await this.#engine.read(id, 0, values);
    return values;
  }

  freeAll(): void {
    for (const id of this.#ids) this.#engine.free(id);
  }
}

export interface KernelCase {
  /** Runs the kernel and returns what it wrote. */
  run(engine: NativeEngine, blocks: Blocks): Promise<Float32Array[]>;
  /** The same, worked out in f64. */
  expected(): ArrayLike<number>[];
  /** Allowed distance, as a fraction of the largest expected magnitude of the array; 0 asks for equality. */
  tolerance: number;
}

/** Runs the kernel on every tier with one thread and with two (the bits must agree), and compares with what is expected. */
export function testKernel(name: string, kernel: KernelCase): void {
  test(name, async () => {
    const engine = loadEngine();
    const { isa, threads, tiers } = engine.info();
    const wanted = kernel.expected();
    try {
      for (const tier of tiers) {
        engine.setIsa(tier);
        const runs: Float32Array[][] = [];
        for (const count of [1, 2]) {
          engine.setThreads(count);
          const blocks = new Blocks(engine);
          runs.push(await kernel.run(engine, blocks));
          blocks.freeAll();
        }
        const [one, two] = runs as [Float32Array[], Float32Array[]];
        assert.equal(one.length, wanted.length);
        for (const [i, got] of one.entries()) {
          assert.ok(sameBits(got, two[i]!), `${name} on ${tier}: output ${i} depends on the number of threads`);
          assertClose(got, wanted[i]!, kernel.tolerance, `${name} on ${tier}, output ${i}`);
        }
      }
    } finally {
      engine.setIsa(isa);
      engine.setThreads(threads);
    }
  });
}

export function sameBits(a: Float32Array, b: Float32Array): boolean {
  return (
    Buffer.compare(Buffer.from(a.buffer, a.byteOffset, a.byteLength), Buffer.from(b.buffer, b.byteOffset, b.byteLength)) === 0
  );
}

export function assertClose(got: ArrayLike<number>, wanted: ArrayLike<number>, tolerance: number, where: string): void {
  assert.equal(got.length, wanted.length, `${where}: length`);
  let largest = 0;
  for (let i = 0; i < wanted.length; i++) largest = Math.max(largest, Math.abs(wanted[i]!));
  for (let i = 0; i < wanted.length; i++) {
    const distance = Math.abs(got[i]! - wanted[i]!);
    if (!(distance <= tolerance * largest)) {
      assert.fail(`${where}: element ${i} is ${got[i]}, expected ${wanted[i]} within ${tolerance * largest}`);
    }
  }
}
