import assert from "node:assert/strict";
import test from "node:test";
import type { NativeEngine } from "./kernels.js";
import { loadEngine } from "./load.js";
import { Blocks, randomFloats, randomSource, sameBits, testKernel } from "./testing/testing.js";

/** One row of draws, and the ids that the penalty is for. */
interface Draw {
  temperature: number;
  topP: number;
  topK: number;
  penalty: number;
  uniform: number;
  logProbTemperature: number;
  seen: number[];
}

const plain: Draw = {
  ...{ temperature: 1, topP: 1, topK: 0, penalty: 1, uniform: 0.5, logProbTemperature: 1 },
  seen: [],
};

async function sample(engine: NativeEngine, logits: Float32Array, draws: readonly Draw[], top = 0): Promise<Float32Array> {
  const blocks = new Blocks(engine);
  const rows = draws.length;
  const vocab = logits.length / rows;
  const block = blocks.of(logits);
  const y = blocks.empty(rows * (1 + top) * 2 * 4);
  const numbers = draws.flatMap((draw) => [
    ...[draw.temperature, draw.topP, draw.topK, draw.penalty, draw.uniform, draw.logProbTemperature],
  ]);
  const seen = draws.flatMap(({ seen: ids }, row) => ids.map((id) => row * vocab + id));
  engine.sample(block, Float64Array.from(numbers), Int32Array.from(seen), y, rows, vocab, top);
  const values = await blocks.read(y, rows * (1 + top) * 2);
  assert.ok(sameBits(await blocks.read(block, logits.length), logits), "the logits end as they began");
  blocks.freeAll();
  return values;
}

/** The draw in f64: candidates with their weights in falling order, and how much of them is kept. */
function distribution(row: Float32Array, { temperature, topP, topK, penalty, seen }: Draw) {
  const logits = Float32Array.from(row);
  for (const id of seen) logits[id]! = logits[id]! > 0 ? logits[id]! / penalty : logits[id]! * penalty;
  const best = logits.reduce((found, logit, id) => (logit > logits[found]! ? id : found), 0);
  if (temperature === 0) return { candidates: [{ id: best, weight: 1 }], nucleus: 1 };
  const candidates = Array.from(logits, (logit, id) => ({ id, distance: (logit - logits[best]!) / temperature }))
    .filter(({ distance }) => distance > -20)
    .map(({ id, distance }) => ({ id, weight: Math.exp(distance) }))
    .sort((a, b) => b.weight - a.weight);
  if (topK > 0) candidates.length = Math.min(candidates.length, topK);
  const total = candidates.reduce((sum, { weight }) => sum + weight, 0);
  let [nucleus, kept] = [0, 0];
  while (kept < candidates.length && (kept === 0 || nucleus < topP * total)) nucleus += candidates[kept++]!.weight;
  return { candidates: candidates.slice(0, kept), nucleus };
}

function firstReaching(candidates: readonly { id: number; weight: number }[], wanted: number): number {
  let left = wanted;
  for (const { id, weight } of candidates) {
    left -= weight;
    if (left <= 0) return id;
  }
  return candidates.at(-1)!.id;
}

/** Whether the uniform number falls to this id, within what rounding of the weights to f32 moves the borders. */
function fallsTo(id: number, row: Float32Array, draw: Draw): boolean {
  const { candidates, nucleus } = distribution(row, draw);
  let sum = 0;
  for (const candidate of candidates) {
    const before = sum;
    sum += candidate.weight;
    const wanted = draw.uniform * nucleus;
    if (candidate.id === id) return wanted >= before - 4e-6 * nucleus && wanted <= sum + 4e-6 * nucleus;
  }
  return false;
}

function logProbsOf(row: Float32Array, temperature: number): Float64Array {
  const scaled = Float64Array.from(row, (logit) => logit / temperature);
  const largest = scaled.reduce((a, b) => Math.max(a, b));
  const sum = scaled.reduce((total, value) => total + Math.exp(value - largest), 0);
  return scaled.map((value) => value - largest - Math.log(sum));
}

/** Rows of all kinds: wide and narrow spreads, ties, masked tokens. */
function randomRows(rows: number, vocab: number, seed: number): Float32Array {
  const values = randomFloats(rows * vocab, seed);
  const next = randomSource(seed + 1);
  for (let row = 0; row < rows; row++) {
    const [spread, tied, masked] = [10 ** (3 * next() - 2), next() < 0.2, next() < 0.2 ? 0.4 : 0];
    for (let i = row * vocab; i < (row + 1) * vocab; i++) {
      values[i]! *= spread;
      if (tied) values[i] = Math.round(values[i]!);
      if (next() < masked) values[i] = Number.NEGATIVE_INFINITY;
    }
    values[row * vocab + Math.floor(next() * vocab)] = spread; // not all are masked
  }
  return values;
}

function randomDraws(rows: number, vocab: number, seed: number): Draw[] {
  const next = randomSource(seed);
  const pick = <T>(...list: readonly T[]): T => list[Math.floor(next() * list.length)]!;
  return Array.from({ length: rows }, () => {
    const seen = next() < 0.5 ? [] : [...new Set(Array.from({ length: 20 }, () => Math.floor(next() * vocab)))];
    return {
      ...{ temperature: pick(0, 0.3, 0.7, 1, 1.5, 100, 1e-9), topP: pick(1, 1, 0.9, 0.5, 0.01, 0), topK: pick(0, 0, 1, 5, 50) },
      ...{ penalty: seen.length > 0 ? pick(1.3, 0.7, 5) : 1, uniform: next(), logProbTemperature: pick(0, 1, 0.7, 3), seen },
    };
  });
}

for (const [rows, vocab] of [
  [300, 5],
  [60, 259],
  [40, 4099],
  [3, 151_936],
] as const) {
  const logits = randomRows(rows, vocab, vocab);
  const draws = randomDraws(rows, vocab, vocab + 7);
  const top = Math.min(vocab, 4);

  test(`tokens are drawn by their chances, with their log-probabilities, of ${rows} × ${vocab}, on every tier`, async () => {
    const engine = loadEngine();
    const { isa, threads, tiers } = engine.info();
    try {
      for (const tier of tiers) {
        engine.setIsa(tier);
        engine.setThreads(2);
        const values = await sample(engine, logits, draws, top);
        engine.setThreads(1);
        assert.ok(sameBits(await sample(engine, logits, draws, top), values), `${tier}: the number of threads changes results`);
        let equal = 0;
        for (const [row, draw] of draws.entries()) {
          const own = logits.subarray(row * vocab, (row + 1) * vocab);
          const result = values.subarray(row * 2 * (1 + top), (row + 1) * 2 * (1 + top));
          const alone = await sample(engine, own.slice(), [draw], top);
          assert.ok(sameBits(alone, result), `${tier}: row ${row} depends on others`);
          assert.ok(fallsTo(result[0]!, own, draw), `${tier}: row ${row}: ${result[0]} for ${JSON.stringify(draw)}`);
          const { candidates, nucleus } = distribution(own, draw);
          equal += Number(result[0] === firstReaching(candidates, draw.uniform * nucleus));
          if (draw.logProbTemperature === 0) {
            assert.deepEqual([...result.subarray(1)], [0, ...Array.from({ length: top }, () => [-1, 0]).flat()]);
            continue;
          }
          const expected = logProbsOf(own, draw.logProbTemperature);
          const order = [...expected.keys()].sort((a, b) => own[b]! - own[a]! || a - b).slice(0, top);
          for (let i = 0; i <= top; i++) {
            const [id, logProb] = result.subarray(2 * i, 2 * i + 2);
            if (i > 0) assert.equal(id, order[i - 1], `${tier}: row ${row}: place ${i}`);
            const wanted = expected[id!]!;
            const isClose = logProb === wanted || Math.abs(logProb! - wanted) <= 2e-6 * Math.max(1, Math.abs(wanted));
            assert.ok(isClose, `${tier}: row ${row}: log-probability ${logProb}, expected ${wanted}`);
          }
        }
        assert.ok(equal >= rows - 1, `${tier}: ${equal} of ${rows} are those that f64 draws`);
      }
    } finally {
      engine.setIsa(isa);
      engine.setThreads(threads);
    }
  });
}

test("every token comes as often as its chance says", async () => {
  const logits = Float32Array.of(0, 2, -1, 1, 0.5, -9);
  const count = 20_000;
  const rows = new Float32Array(count * 6);
  for (let i = 0; i < count; i++) rows.set(logits, 6 * i);
  const draw = { ...plain, temperature: 0.8, topK: 4 };
  const draws = Array.from({ length: count }, (_, i) => ({ ...draw, uniform: (i + 0.5) / count }));
  const values = await sample(loadEngine(), rows, draws);
  const { candidates, nucleus } = distribution(logits, draw);
  assert.equal(candidates.length, 4);
  for (const { id, weight } of candidates) {
    const times = Array.from({ length: count }, (_, i) => values[2 * i]).filter((drawn) => drawn === id).length;
    assert.ok(Math.abs(times / count - weight / nucleus) < 1e-4, `${id}: ${times} of ${count}, expected ${weight / nucleus}`);
  }
});

const nan = Number.NaN;
const infinite = Number.POSITIVE_INFINITY;
testKernel("a row that says nothing gives −1 and the logit that is at fault, and leaves the others alone", {
  async run(engine) {
    const rows = [
      [1, nan, 2],
      [1, infinite, 2],
      [-infinite, -infinite, -infinite],
      [-infinite, 3, -infinite],
    ].flat();
    const greedy = { ...plain, temperature: 0 };
    const values = await sample(engine, Float32Array.from(rows), [plain, greedy, plain, plain], 1);
    assert.ok(Number.isNaN(values[1]));
    values[1] = 0;
    values[5] = values[5] === infinite ? 1 : 0;
    values[9] = values[9] === -infinite ? 1 : 0;
    return [values];
  },
  expected: () => [[-1, 0, -1, 0, -1, 1, -1, 0, -1, 1, -1, 0, 1, 0, 1, 0]],
  tolerance: 0,
});

testKernel("of equal logits the first comes first, wherever it stands, and a NaN anywhere is found", {
  async run(engine) {
    const vocab = 20_000;
    const rows = [0, 1, 4095, 4096, 4097, 15_000, vocab - 1];
    const logits = randomFloats(rows.length * vocab, 3);
    for (const [row, place] of rows.entries()) {
      logits[row * vocab + place] = 50;
      logits[(row + 1) * vocab - 1] = 50;
    }
    const greedy = { ...plain, temperature: 0, logProbTemperature: 0 };
    const values = await sample(engine, logits, Array(rows.length).fill(greedy));
    for (const [row, place] of rows.entries()) logits[row * vocab + place] = Number.NaN;
    const flawed = await sample(engine, logits, Array(rows.length).fill(greedy));
    return [
      values.filter((_, i) => i % 2 === 0),
      flawed.filter((_, i) => i % 2 === 0),
      flawed.filter((_, i) => i % 2 === 1).map((value) => Number(Number.isNaN(value))),
    ];
  },
  expected: () => [[0, 1, 4095, 4096, 4097, 15_000, 19_999], Array(7).fill(-1), Array(7).fill(1)],
  tolerance: 0,
});

test("a million equal logits, and logits that differ in the last bit, are drawn quickly", async () => {
  const vocab = 1 << 20;
  const flat = new Float32Array(vocab).fill(1);
  const near = Float32Array.from({ length: vocab }, (_, i) => 1 + ((i * 7919) % 1024) * 2 ** -23);
  for (const logits of [flat, near]) {
    const startMs = performance.now();
    const [id] = await sample(loadEngine(), logits, [{ ...plain, uniform: 0.25 }]);
    assert.ok(performance.now() - startMs < 2000);
    if (logits === flat) assert.equal(id, 2 ** 18 - 1);
  }
});

test("sample refuses places that are not in the order of rows, and sizes that do not fit", () => {
  const engine = loadEngine();
  const x = engine.alloc(1024);
  const draws = new Float64Array(12);
  assert.throws(() => engine.sample(x, draws, Int32Array.of(7, 3), x, 2, 5, 0), /seen\[1\] is in row 0, after one of row 1/);
  assert.throws(() => engine.sample(x, draws, Int32Array.of(10), x, 2, 5, 0), /seen\[0\] is 10, expected 0 to 9/);
  assert.throws(() => engine.sample(x, draws, Int32Array.of(), x, 1, 5, 0), /draws must hold 6 numbers for each of rows/);
  assert.throws(() => engine.sample(x, draws, Int32Array.of(), x, 2, 5, 6), /top must be .* at most vocab, got 6/);
  assert.throws(() => engine.sample(x, draws, Int32Array.of(), x, 2, 0, 0), /vocab must be .* 1 or more/);
  assert.throws(() => engine.sample(x, draws, Int32Array.of(), x, 2, 2 ** 24 + 1, 0), /vocab must be .* at most/);
  engine.free(x);
});
