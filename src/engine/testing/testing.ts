import assert from "node:assert/strict";
import test from "node:test";
import type { Id, NativeEngine } from "../kernels.js";
import { loadEngine } from "../load.js";

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

/** The word of element i, as philox.inl lays it out; `row` stands above the element's number. */
export function philoxWord(seed: bigint, i: number, row = 0): number {
  const counter = ((BigInt(row) << 26n) | BigInt(Math.floor(i / 64))) * 16n + BigInt(i % 16);
  const [low, high] = [(x: bigint) => Number(x & 0xffff_ffffn), (x: bigint) => Number(x >> 32n)];
  return philox([low(counter), high(counter), 0, 0], [low(seed), high(seed)])[Math.floor(i / 16) % 4]!;
}

/** Philox4x32-10 (Salmon et al. 2011). */
export function philox(counter: [number, number, number, number], key: [number, number]): [number, number, number, number] {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = multiply(c0, 0xd2511f53);
    const [high1, low1] = multiply(c2, 0xcd9e8d57);
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** High and low word of a 32 × 32 bit product. */
function multiply(a: number, b: number): [number, number] {
  const low = Math.imul(a, b) >>> 0;
  const carry = (a & 0xffff) * (b & 0xffff);
  const middle = (a >>> 16) * (b & 0xffff) + Math.floor(carry / 65536);
  const other = (a & 0xffff) * (b >>> 16) + (middle % 65536);
  return [((a >>> 16) * (b >>> 16) + Math.floor(middle / 65536) + Math.floor(other / 65536)) >>> 0, low];
}
