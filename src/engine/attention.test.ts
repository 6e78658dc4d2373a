import assert from "node:assert/strict";
import test from "node:test";
import type { AttentionShape, ComputeType } from "./kernels.js";
import { loadEngine } from "./load.js";
import { Blocks, philoxWord, randomFloats, sameBits, testKernel } from "./testing/testing.js";

/** qStart, qLength, kStart, kLength, and prefixStart and prefixLength where it has a prefix. */
type Numbers = readonly [number, number, number, number] | readonly [number, number, number, number, number, number];

const flat = (segments: readonly Numbers[]) => Int32Array.from(segments.flatMap((s) => (s.length === 4 ? [...s, 0, 0] : [...s])));

interface Setting {
  segments: readonly Numbers[];
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
    kRows:
      Math.max(...segments.map(([, , start, length, first = 0, many = 0]) => Math.max(start + length, first + many))) + spare,
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

  for (const [qStart, qLength, kStart, ownKeys, prefixStart = 0, prefixLength = 0] of s.segments) {
    const kLength = prefixLength + ownKeys;
    const rowOf = (j: number) => (j < prefixLength ? prefixStart + j : kStart + j - prefixLength);
    const placeOf = (j: number) => (j < prefixLength ? j : Math.ceil(prefixLength / 64) * 64 + j - prefixLength);
    for (let i = 0; i < qLength; i++) {
      const last = causal ? i + kLength - qLength : kLength - 1;
      const keys = Array.from({ length: kLength }, (_, j) => j).filter((j) => j <= last && (window === 0 || j > last - window));
      if (keys.length === 0) continue;
      for (let head = 0; head < heads; head++) {
        const at = ((qStart + i) * heads + head) * headDim;
        const keyAt = (j: number): number => (rowOf(j) * kvHeads + Math.floor((head * kvHeads) / heads)) * headDim;
        const scores = keys.map((j) => scale * dot(q, at, k, keyAt(j)));
        const most = Math.max(...scores);
        const total = most + Math.log(scores.reduce((sum, x) => sum + Math.exp(x - most), 0));
        const p = scores.map((x) => Math.exp(x - total));
        const keeps = (j: number) => philoxWord(seed, placeOf(j), (qStart + i) * heads + head) >= dropout * 2 ** 32;
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
  const segments = flat(setting.segments);
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

/** A prompt of some length and answers to it, all one behind the other, and perhaps the keys of virtual tokens before the prompt's. */
function family(prompt: number, answers: readonly number[], { at = 0, virtual = 0 } = {}): Numbers[] {
  const segments: Numbers[] = [[at, prompt, at, virtual + prompt]];
  let row = at + prompt;
  for (const length of answers) {
    segments.push([row, length, row + virtual, length, at, virtual + prompt]);
    row += length;
  }
  return segments;
}

testAttention("of answers to one prompt", { segments: family(70, [33, 1, 50, 3]) });
testAttention("of answers to a prompt of one token", { segments: family(1, [5, 1, 2]) });
testAttention("of answers to two prompts, grouped", {
  segments: [...family(20, [33, 40]), ...family(64, [1, 17, 96], { at: 93 })],
  heads: 6,
  kvHeads: 2,
  headDim: 64,
});
testAttention("of answers to a prompt behind virtual tokens", { segments: family(30, [20, 40], { virtual: 7 }) });
testAttention("of answers and a prompt over several chunks", { segments: family(310, [300, 20, 310]), heads: 1, headDim: 8 });
for (const window of [2, 5, 33, 60, 100, 400])
  testAttention(`of answers with a window of ${window}`, { segments: family(110, [40, 1, 120]), heads: 1, headDim: 8, window });
testAttention("of answers over several chunks with a window", {
  segments: family(310, [300, 20]),
  heads: 1,
  headDim: 8,
  window: 90,
});
testAttention("of answers with dropout", { segments: family(70, [33, 3, 130]), heads: 4, kvHeads: 2, dropout: 0.3 });
testAttention("of answers with dropout and a window", { segments: family(100, [33, 2]), heads: 2, window: 50, dropout: 0.3 });
testAttention("without a mask, with a prefix", { segments: [[0, 20, 40, 30, 0, 33]], causal: false });
testAttention("without a mask, with a prefix and a window", { segments: [[0, 20, 40, 30, 0, 33]], causal: false, window: 40 });
testAttention("of prefixes that overlap each other and own keys in any way", {
  segments: [
    [0, 40, 0, 50],
    [40, 30, 50, 20, 10, 30],
    [70, 30, 70, 30, 25, 40],
    [100, 10, 100, 10, 0, 100],
    [110, 10, 110, 0, 60, 30],
    [120, 10, 110, 10, 40, 0],
  ],
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
      engine.attention(q, k, v, o, lse, flat(segments), own, compute);
      engine.attentionGrad(q, k, v, o, lse, dout, dq, dk, dv, flat(segments), own, compute);
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
    engine.attention(qId, kId, vId, o, lse, Int32Array.of(0, 2, 0, 2, 0, 0), shape, "f32");
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
  attend([0, 4, 0, 4, 0, 0]);
  assert.throws(() => attend([0, 4, 0, 4, 0, 0], { qRows: 5 }), RangeError);
  assert.throws(() => attend([0, 4, 0, 4, 0, 0], { kRows: 100 }), RangeError);
  assert.throws(() => attend([0, 4, 0, 4, 0, 0], { kvHeads: 3 }), RangeError);
  assert.throws(() => attend([0, 4, 0, 4, 0, 0], { headDim: 0 }), RangeError);
  assert.throws(() => attend([0, 5, 0, 4, 0, 0]), RangeError);
  assert.throws(() => attend([0, 4, 1, 4, 0, 0]), RangeError);
  assert.throws(() => attend([-1, 4, 0, 4, 0, 0]), RangeError);
  assert.throws(() => attend([0, 4, 0, 4]), RangeError);
  assert.throws(() => attend([0, 4, 0, 4, 2, 3]), RangeError);
  assert.throws(() => attend([0, 4, 0, 4, -1, 1]), RangeError);
  assert.throws(() => attend([0, 4, 0, 4, 0, -1]), RangeError);
  assert.throws(() => attend([0, 3, 0, 3, 0, 0, 2, 2, 2, 2, 0, 0]), RangeError);
  blocks.freeAll();
});
