import assert from "node:assert/strict";
import test from "node:test";
import type { AttentionShape, ComputeType } from "./kernels.js";
import { loadEngine } from "./load.js";
import { Blocks, philoxWord, randomFloats, sameBits, testKernel } from "./testing/testing.js";

interface Setting {
  /** (qStart, qLength, kStart, kLength) of each sequence. */
  segments: readonly (readonly [number, number, number, number])[];
  heads?: number;
  kvHeads?: number;
  headDim?: number;
  causal?: boolean;
  window?: number;
  dropout?: number;
  /** Rows behind the last segment. */
  spare?: number;
}

function shapeOf(s: Setting): AttentionShape {
  const { segments, heads = 2, kvHeads = 1, headDim = 16, causal = true, window = 0, dropout = 0, spare = 0 } = s;
  return {
    qRows: Math.max(...segments.map(([start, length]) => start + length)) + spare,
    kRows: Math.max(...segments.map(([, , start, length]) => start + length)) + spare,
    heads,
    kvHeads,
    headDim,
    scale: 1 / Math.sqrt(headDim),
    causal,
    window,
    dropout,
    seed: 0xfedc_ba98_7654_3210n,
  };
}

function inputs(shape: AttentionShape): { q: Float32Array; k: Float32Array; v: Float32Array; dout: Float32Array } {
  const [qSize, kSize] = [shape.qRows * shape.heads * shape.headDim, shape.kRows * shape.kvHeads * shape.headDim];
  return { q: randomFloats(qSize, 1, 2), k: randomFloats(kSize, 2), v: randomFloats(kSize, 3), dout: randomFloats(qSize, 4) };
}

/** Attention and its gradients by their definition, in f64, with whole rows of scores. */
function reference(s: Setting): Float64Array[] {
  const shape = shapeOf(s);
  const { heads, kvHeads, headDim, scale, causal, window, dropout, seed } = shape;
  const { q, k, v, dout } = inputs(shape);
  const o = new Float64Array(q.length);
  const lse = new Float64Array(shape.qRows * heads).fill(Number.NEGATIVE_INFINITY);
  const [dq, dk, dv] = [new Float64Array(q.length), new Float64Array(k.length), new Float64Array(v.length)];
  const features = Array.from({ length: headDim }, (_, d) => d);
  const dot = (a: ArrayLike<number>, i: number, b: ArrayLike<number>, j: number): number =>
    features.reduce((sum, d) => sum + a[i + d]! * b[j + d]!, 0);

  for (const [qStart, qLength, kStart, kLength] of s.segments) {
    for (let i = 0; i < qLength; i++) {
      const last = causal ? i + kLength - qLength : kLength - 1;
      const keys = Array.from({ length: kLength }, (_, j) => j).filter((j) => j <= last && (window === 0 || j > last - window));
      if (keys.length === 0) continue;
      for (let head = 0; head < heads; head++) {
        const at = ((qStart + i) * heads + head) * headDim;
        const keyAt = (j: number): number => ((kStart + j) * kvHeads + Math.floor((head * kvHeads) / heads)) * headDim;
        const scores = keys.map((j) => scale * dot(q, at, k, keyAt(j)));
        const most = Math.max(...scores);
        const total = most + Math.log(scores.reduce((sum, x) => sum + Math.exp(x - most), 0));
        const p = scores.map((x) => Math.exp(x - total));
        const keeps = (j: number) => philoxWord(seed, j, (qStart + i) * heads + head) >= dropout * 2 ** 32;
        const mask = keys.map((j) => (dropout === 0 ? 1 : keeps(j) ? 1 / (1 - dropout) : 0));
        const dp = keys.map((j, n) => mask[n]! * dot(dout, at, v, keyAt(j)));
        const mean = p.reduce((sum, x, n) => sum + x * dp[n]!, 0);
        lse[(qStart + i) * heads + head] = total;
        for (const [n, j] of keys.entries()) {
          const ds = scale * p[n]! * (dp[n]! - mean);
          for (const d of features) {
            o[at + d]! += mask[n]! * p[n]! * v[keyAt(j) + d]!;
            dq[at + d]! += ds * k[keyAt(j) + d]!;
            dk[keyAt(j) + d]! += ds * q[at + d]!;
            dv[keyAt(j) + d]! += mask[n]! * p[n]! * dout[at + d]!;
          }
        }
      }
    }
  }
  return [o, lse.map(finite), dq, dk, dv];
}

/** −∞ (no key seen) as a number that can be compared. */
const finite = (x: number): number => (x === Number.NEGATIVE_INFINITY ? -99 : x);

function testAttention(name: string, setting: Setting): void {
  testAttentionIn("f32", 4e-6, name, setting);
  testAttentionIn("bf16", 5e-2, name, setting); // 8 bits of mantissa, in gradients of two keys that nearly cancel
}

function testAttentionIn(compute: ComputeType, tolerance: number, name: string, setting: Setting): void {
  const shape = shapeOf(setting);
  const segments = Int32Array.from(setting.segments.flat());
  testKernel(`attention in ${compute} ${name}`, {
    async run(engine, blocks) {
      const data = inputs(shape);
      const [q, k, v, dout] = [data.q, data.k, data.v, data.dout].map((x) => blocks.of(x)) as [number, number, number, number];
      const [o, lse, dq] = [data.q.length, shape.qRows * shape.heads, data.q.length].map((n) => blocks.empty(n * 4)) as [
        number,
        number,
        number,
      ];
      const [dk, dv] = [blocks.empty(data.k.length * 4), blocks.empty(data.v.length * 4)];
      engine.attention(q, k, v, o, lse, segments, shape, compute);
      engine.attentionGrad(q, k, v, o, lse, dout, dq, dk, dv, segments, shape, compute);
      return [
        await blocks.read(o, data.q.length),
        (await blocks.read(lse, shape.qRows * shape.heads)).map(finite),
        await blocks.read(dq, data.q.length),
        await blocks.read(dk, data.k.length),
        await blocks.read(dv, data.v.length),
      ];
    },
    expected: () => reference(setting),
    tolerance,
  });
}

testAttention("of one token to two", { segments: [[0, 1, 0, 2]] }); // to one alone, the gradient of q and k is 0 but for rounding
for (const headDim of [1, 7, 16, 33, 64, 100, 128]) {
  testAttention(`with heads of ${headDim}`, { segments: [[0, 70, 0, 70]], headDim });
}
for (const [heads, kvHeads] of [
  [1, 1],
  [4, 4],
  [6, 2],
  [9, 1],
] as const) {
  testAttention(`with ${heads} heads on ${kvHeads}`, { segments: [[0, 50, 0, 50]], heads, kvHeads });
}
testAttention("over several chunks of keys and queries", { segments: [[0, 310, 0, 310]], heads: 1, headDim: 8 });
testAttention("over several chunks with a window", { segments: [[0, 310, 0, 310]], heads: 1, headDim: 8, window: 33 });
testAttention("with dropout", { segments: [[0, 70, 0, 70]], dropout: 0.3 });
testAttention("with dropout over several chunks and heads", {
  segments: [
    [0, 110, 0, 110],
    [110, 310, 110, 310],
  ],
  heads: 4,
  kvHeads: 2,
  headDim: 8,
  dropout: 0.1,
});
testAttention("with dropout, a window and no order", { segments: [[0, 40, 0, 150]], causal: false, window: 60, dropout: 0.5 });
testAttention("with dropout of few queries", { segments: [[0, 2, 0, 200]], heads: 6, kvHeads: 2, dropout: 0.2 });
testAttention("without a mask", { segments: [[0, 110, 0, 60]], causal: false });
testAttention("without a mask, over several chunks", { segments: [[0, 20, 0, 600]], heads: 1, headDim: 8, causal: false });
testAttention("without a mask, with a window", { segments: [[0, 20, 0, 120]], causal: false, window: 30 });
for (const window of [2, 16, 96, 97]) testAttention(`with a window of ${window}`, { segments: [[0, 105, 0, 130]], window });
testAttention("of new tokens behind cached ones", { segments: [[0, 30, 0, 200]] });
testAttention("of the next token", {
  segments: [
    [0, 1, 0, 200],
    [1, 1, 200, 97],
    [2, 1, 300, 1],
  ],
  heads: 6,
  kvHeads: 2,
  headDim: 64,
});
testAttention("of the next token with a window and odd heads", {
  segments: [
    [0, 1, 0, 200],
    [1, 2, 200, 97],
  ],
  heads: 3,
  headDim: 10,
  window: 50,
});
testAttention("of queries before the first key", { segments: [[0, 40, 0, 9]] });
testAttention("of segments with gaps, empty ones and spare rows", {
  segments: [
    [2, 30, 5, 30],
    [32, 0, 40, 10],
    [35, 12, 60, 0],
    [50, 101, 61, 101],
  ],
  spare: 3,
});

for (const compute of ["f32", "bf16"] as const)
  test(`packed sequences attend as each would alone, bit for bit, in ${compute}`, async () => {
    const engine = loadEngine();
    const setting: Setting = {
      segments: [
        [0, 37, 0, 37],
        [37, 120, 37, 120],
        [157, 1, 157, 1],
      ],
      heads: 3,
      headDim: 64,
    };
    const shape = shapeOf(setting);
    const data = inputs(shape);
    const blocks = new Blocks(engine);
    const run = async (segments: Setting["segments"], first: number, rows: number): Promise<Float32Array[]> => {
      const own = { ...shape, qRows: rows, kRows: rows };
      const part = (x: Float32Array): number => {
        const width = x.length / shape.qRows;
        return blocks.of(x.subarray(first * width, (first + rows) * width));
      };
      const [q, k, v, dout] = [part(data.q), part(data.k), part(data.v), part(data.dout)];
      const [qSize, kSize] = [rows * shape.heads * shape.headDim, rows * shape.kvHeads * shape.headDim];
      const [o, lse, dq] = [blocks.empty(qSize * 4), blocks.empty(rows * shape.heads * 4), blocks.empty(qSize * 4)];
      const [dk, dv] = [blocks.empty(kSize * 4), blocks.empty(kSize * 4)];
      engine.attention(q, k, v, o, lse, Int32Array.from(segments.flat()), own, compute);
      engine.attentionGrad(q, k, v, o, lse, dout, dq, dk, dv, Int32Array.from(segments.flat()), own, compute);
      return [
        await blocks.read(o, qSize),
        await blocks.read(dq, qSize),
        await blocks.read(dk, kSize),
        await blocks.read(dv, kSize),
      ];
    };
    const packed = await run(setting.segments, 0, shape.qRows);
    for (const [start, length] of setting.segments) {
      const alone = await run([[0, length, 0, length]], start, length);
      for (const [i, array] of alone.entries()) {
        const width = packed[i]!.length / shape.qRows;
        assert.ok(
          sameBits(array, packed[i]!.subarray(start * width, (start + length) * width)),
          `segment at ${start}, array ${i}`,
        );
      }
    }
    blocks.freeAll();
  });

test("scores far apart stay finite, and NaN comes through", async () => {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const shape: AttentionShape = {
    qRows: 2,
    kRows: 2,
    heads: 1,
    kvHeads: 1,
    headDim: 1,
    scale: 1,
    causal: true,
    window: 0,
    dropout: 0,
    seed: 0n,
  };
  const attend = async (q: number[], k: number[]): Promise<number[]> => {
    const [o, lse] = [blocks.empty(8), blocks.empty(8)];
    const [qId, kId, vId] = [blocks.of(Float32Array.from(q)), blocks.of(Float32Array.from(k)), blocks.of(Float32Array.of(1, 2))];
    engine.attention(qId, kId, vId, o, lse, Int32Array.of(0, 2, 0, 2), shape, "f32");
    return [...(await blocks.read(o, 2)), ...(await blocks.read(lse, 2))];
  };
  assert.deepEqual(await attend([100, 100], [-100, 100]), [1, 2, -10000, 10000]);
  assert.deepEqual(await attend([-100, 100], [1, -1]), [1, 1, -100, 100]);
  const broken = await attend([1, Number.NaN], [1, 1]);
  assert.deepEqual(broken, [1, Number.NaN, 1, Number.NaN]);
  blocks.freeAll();
});

test("attention refuses what does not fit", () => {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const all = blocks.empty(4 * 2 * 8 * 4);
  const shape: AttentionShape = {
    qRows: 4,
    kRows: 4,
    heads: 2,
    kvHeads: 1,
    headDim: 8,
    scale: 1,
    causal: true,
    window: 0,
    dropout: 0,
    seed: 0n,
  };
  const attend = (segments: number[], changed: Partial<AttentionShape> = {}) =>
    engine.attention(all, all, all, all, all, Int32Array.from(segments), { ...shape, ...changed }, "f32");
  attend([0, 4, 0, 4]);
  assert.throws(() => attend([0, 4, 0, 4], { qRows: 5 }), RangeError);
  assert.throws(() => attend([0, 4, 0, 4], { kRows: 100 }), RangeError);
  assert.throws(() => attend([0, 4, 0, 4], { kvHeads: 3 }), RangeError);
  assert.throws(() => attend([0, 4, 0, 4], { headDim: 0 }), RangeError);
  assert.throws(() => attend([0, 5, 0, 4]), RangeError);
  assert.throws(() => attend([0, 4, 1, 4]), RangeError);
  assert.throws(() => attend([-1, 4, 0, 4]), RangeError);
  assert.throws(() => attend([0, 4, 0]), RangeError);
  assert.throws(() => attend([0, 3, 0, 3, 2, 2, 2, 2]), RangeError);
  blocks.freeAll();
});
