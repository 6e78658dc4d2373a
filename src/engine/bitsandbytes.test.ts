import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import test from "node:test";
import { bytesOf } from "./dtype.js";
import type { NativeEngine } from "./kernels.js";
import { loadEngine } from "./load.js";
import { dynamicMap } from "./testing/quant-reference.js";
import { Blocks, sameBits, testKernel } from "./testing/testing.js";

/** Made by test/fixtures/make_bnb.py. */
interface Fixture {
  readonly dynamic_map: string;
  readonly nf4: FourBitCase;
  readonly fp4: FourBitCase;
  readonly adamw_8bit: {
    readonly count: number;
    readonly steps: number;
    readonly p: string;
    readonly m: string;
    readonly v: string;
    readonly m_absmax: string;
    readonly v_absmax: string;
  };
}

interface FourBitCase {
  readonly q: string;
  readonly absmax: string;
  readonly codes: string;
  readonly scales: string;
  readonly offset: number;
  readonly sha256: string;
  readonly sha256_f32: string;
}

const fixture: Fixture = JSON.parse(readFileSync(new URL("../../../test/fixtures/bnb.json", import.meta.url), "utf8"));
const bytesIn = (base64: string) => new Uint8Array(Buffer.from(base64, "base64"));
const floatsIn = (base64: string) => new Float32Array(bytesIn(base64).buffer);

/** Like `numbers` in make_bnb.py. */
function fixtureNumbers(count: number, salt: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => {
    const unit = Number(((BigInt(i) * 2654435761n + BigInt(salt) * 40503n) % 2n ** 32n) >> 8n) / 2 ** 24 - 0.5;
    return (unit * (1 + ((Math.floor(i / 64) * 7) % 32))) / 16;
  });
}

function fourBitInput(): Float32Array {
  const x = fixtureNumbers(2 * 130 * 64, 3);
  x.fill(0, 0, 64);
  for (let i = 64; i < 128; i++) x[i]! *= Math.fround(1e-20);
  x.set([0, -0, 1e-30, -1e-30, 0.5], 128);
  return x;
}

/** The engine's blocks, put together from bitsandbytes' tensors. */
function blocksOf({ q, absmax, codes, scales, offset }: FourBitCase, isDouble: boolean): Uint8Array {
  const [packed, scaleBytes, headOf] = [bytesIn(q), bytesIn(scales), isDouble ? bytesIn(codes) : bytesIn(absmax)];
  const size = isDouble ? 1 : 4;
  const parts: Uint8Array[] = [];
  for (let block = 0; block < packed.length / 32; block++) {
    if (isDouble && block % 256 === 0)
      parts.push(scaleBytes.subarray(block / 64, block / 64 + 4), new Uint8Array(Float32Array.of(offset).buffer));
    parts.push(headOf.subarray(block * size, (block + 1) * size), packed.subarray(block * 32, (block + 1) * 32));
  }
  return new Uint8Array(Buffer.concat(parts));
}

async function onEveryTier(run: (engine: NativeEngine, tier: string) => Promise<void>): Promise<void> {
  const engine = loadEngine();
  const { isa, threads, tiers } = engine.info();
  try {
    for (const tier of tiers) {
      engine.setIsa(tier);
      for (const count of [1, 2]) {
        engine.setThreads(count);
        await run(engine, `${tier}, ${count} threads`);
      }
    }
  } finally {
    engine.setIsa(isa);
    engine.setThreads(threads);
  }
}

for (const kind of ["nf4", "fp4"] as const)
  for (const type of [kind, `${kind}_f32`] as const) {
    const wanted = blocksOf(fixture[kind], type === kind);
    const hash = type === kind ? fixture[kind].sha256 : fixture[kind].sha256_f32;

    test(`${type}: the same blocks as bitsandbytes, and the same numbers out of them, bit by bit`, () =>
      onEveryTier(async (engine, where) => {
        const x = fourBitInput();
        assert.equal(bytesOf(type, x.length), wanted.length);
        const blocks = new Blocks(engine);
        const [stored, wide] = [blocks.empty(wanted.length), blocks.empty(x.length * 4)];
        engine.quantize(blocks.of(x), "f32", stored, type, 2, x.length / 2);
        engine.convert(stored, type, wide, "f32", x.length);
        const got = new Uint8Array(wanted.length);
        await engine.read(stored, 0, got);
        const difference = got.findIndex((byte, i) => byte !== wanted[i]);
        assert.equal(difference, -1, `${where}: byte ${difference} is ${got[difference]}, expected ${wanted[difference]}`);
        const values = await blocks.read(wide, x.length);
        assert.equal(createHash("sha256").update(new Uint8Array(values.buffer)).digest("hex"), hash, where);
        blocks.freeAll();
      }));
  }

test("numbers in 16 bits become the blocks of the same numbers in 32, and NaN spoils its block alone", async () => {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const count = 64 * 4;
  const narrow = blocks.empty(count * 2);
  const wide = blocks.empty(count * 4);
  engine.convert(blocks.of(fixtureNumbers(count, 5)), "f32", narrow, "bf16", count);
  engine.convert(narrow, "bf16", wide, "f32", count);
  const stored = [blocks.empty(36 * 4), blocks.empty(36 * 4)] as const;
  engine.quantize(narrow, "bf16", stored[0], "nf4_f32", 2, count / 2);
  engine.quantize(wide, "f32", stored[1], "nf4_f32", 2, count / 2);
  assert.ok(sameBits(await blocks.read(stored[0], 36), await blocks.read(stored[1], 36)));

  for (const at of [64, 70, 127]) {
    const x = fixtureNumbers(count, 5);
    x[at] = Number.NaN;
    engine.quantize(blocks.of(x), "f32", stored[0], "nf4_f32", 1, count);
    engine.convert(stored[0], "nf4_f32", wide, "f32", count);
    const values = await blocks.read(wide, count);
    assert.ok(values.every((value, i) => Number.isNaN(value) === (i >= 64 && i < 128)));
  }
  blocks.freeAll();
});

test("quantize refuses what it cannot do", () => {
  const engine = loadEngine();
  const [x, y] = [engine.alloc(4096), engine.alloc(4096)];
  assert.throws(() => engine.quantize(x, "f32", y, "f16", 1, 64), /quantize: cannot quantize to f16/);
  assert.throws(
    () => engine.quantize(x, "q8_0", y, "nf4", 1, 64),
    /quantize: cannot quantize q8_0: expected x in f32, f16 or bf16/,
  );
  assert.throws(() => engine.quantize(x, "f32", y, "nf4", 2, 96), /a row of 96 is no whole number of nf4 blocks of 64/);
  assert.throws(() => engine.quantize(x, "f32", x, "nf4", 1, 64), /x and y must be two blocks/);
  assert.throws(() => engine.quantize(x, "f32", engine.alloc(40), "nf4", 1, 64), /y needs 41 bytes/);
  engine.free(x);
  engine.free(y);
});

test("the tests' dynamic map is bitsandbytes' own", () => {
  assert.ok(sameBits(dynamicMap, floatsIn(fixture.dynamic_map)));
});

const betas = { beta1: 0.9, beta2: 0.99 };
const settings = { ...betas, lr: 1e-2, eps: 1e-6, weightDecay: 0.1, gradScale: 0.5 };

test("adamw8bit goes bitsandbytes' way: codes may differ by one where a number lies in the middle", () =>
  onEveryTier(async (engine, where) => {
    const { count, steps, p, m, v, m_absmax, v_absmax } = fixture.adamw_8bit;
    const blocks = new Blocks(engine);
    const words = Math.ceil(count / 256) * 65;
    const [param, moments, squares] = [
      blocks.of(fixtureNumbers(count, 1)),
      blocks.of(new Float32Array(words)),
      blocks.of(new Float32Array(words)),
    ] as const;
    for (let step = 0; step < steps; step++) {
      const grad = blocks.of(fixtureNumbers(count, 10 + step).map((value) => value * 2));
      const corrections = { correction1: 1 - betas.beta1 ** (step + 1), correction2: 1 - betas.beta2 ** (step + 1) };
      engine.adamw8bit(param, grad, moments, squares, blocks.of(new Float32Array(1)), count, { ...settings, ...corrections });
    }
    const got = await blocks.read(param, count);
    for (const [i, value] of floatsIn(p).entries()) {
      assert.ok(Math.abs(got[i]! - value) <= 2e-6, `${where}: p[${i}] is ${got[i]}, bitsandbytes has ${value}`);
    }
    for (const [id, codes, absmax] of [
      [moments, bytesIn(m), floatsIn(m_absmax)],
      [squares, bytesIn(v), floatsIn(v_absmax)],
    ] as const) {
      const stored = await blocks.read(id, words);
      let differing = 0;
      for (const [block, size] of absmax.entries()) {
        assert.ok(Math.abs(stored[block * 65]! / size - 1) < 1e-6, `${where}: absmax of block ${block}`);
        const own = new Uint8Array(stored.buffer, block * 260 + 4, Math.min(256, count - block * 256));
        for (const [i, code] of own.entries()) {
          const distance = Math.abs(code - codes[block * 256 + i]!);
          assert.ok(distance <= 1, `${where}: code ${i} of block ${block}`);
          differing += distance;
        }
      }
      assert.ok(differing <= count / 200, `${where}: ${differing} codes differ`);
    }
    blocks.freeAll();
  }));

for (const count of [1, 255, 256, 20000])
  testKernel(`adamw8bit of ${count}: the first step is adamw's, and tiny, huge and no gradients stay finite`, {
    async run(engine, blocks) {
      const words = Math.ceil(count / 256) * 65;
      const [p, m, v] = [
        blocks.of(fixtureNumbers(count, 1)),
        blocks.of(new Float32Array(words)),
        blocks.of(new Float32Array(words)),
      ];
      const flaws = blocks.of(new Float32Array(1));
      const g = fixtureNumbers(count, 2);
      g.fill(0, 512, 768);
      for (let i = 768; i < Math.min(count, 1024); i++) g[i]! *= 1e-25;
      for (let i = 1024; i < Math.min(count, 1280); i++) g[i]! *= 1e15;
      const corrections = { correction1: 0.1, correction2: 0.01 };
      engine.adamw8bit(p, blocks.of(g), m, v, flaws, count, { ...settings, ...corrections });
      const first = await blocks.read(p, count);
      engine.adamw8bit(p, blocks.of(g), m, v, flaws, count, { ...settings, correction1: 0.19, correction2: 0.0199 });
      assert.ok((await blocks.read(p, count)).every(Number.isFinite));
      assert.deepEqual(await blocks.read(flaws, 1), Float32Array.of(0));
      return [first];
    },
    expected: () => {
      const g = fixtureNumbers(count, 2);
      const tiny = (i: number) => (i >= 512 && i < 768 ? 0 : i >= 768 && i < 1024 ? 1e-25 : i >= 1024 && i < 1280 ? 1e15 : 1);
      return [
        Array.from(fixtureNumbers(count, 1), (p, i) => {
          const grad = g[i]! * tiny(i) * 0.5;
          return p * (1 - 1e-3) - (settings.lr * grad) / (Math.abs(grad) + settings.eps);
        }),
      ];
    },
    tolerance: 1e-6,
  });

test("adamw8bit refuses moments that are too small", () => {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const step = { ...settings, correction1: 0.1, correction2: 0.01 };
  const [x, small, large] = [blocks.empty(257 * 4), blocks.empty(260), blocks.empty(520)];
  engine.adamw8bit(x, x, large, large, x, 257, step);
  assert.throws(() => engine.adamw8bit(x, x, small, large, x, 257, step), /adamw8bit: m needs 520 bytes/);
  assert.throws(() => engine.adamw8bit(x, x, large, small, x, 257, step), /adamw8bit: v needs 520 bytes/);
  assert.throws(() => engine.adamw8bit(x, x, large, large, x, 257, { ...step, beta2: 1 }), /adamw8bit: step.beta2/);
  blocks.freeAll();
});
