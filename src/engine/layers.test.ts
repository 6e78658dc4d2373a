import { randomFloats, randomIndices, testKernel } from "./testing/testing.js";

const shapes = [
  [1, 3],
  [2, 7],
  [33, 63],
  [5, 65],
  [300, 576],
] as const;

for (const [rows, cols] of shapes) {
  const x = randomFloats(rows * cols, 1);
  const w = randomFloats(cols, 2);
  const dy = randomFloats(rows * cols, 3);
  const before = randomFloats(rows * cols, 4);
  const eps = 1e-5;
  const rstd = Float64Array.from({ length: rows }, (_, row) => {
    let squares = 0;
    for (let j = 0; j < cols; j++) squares += x[row * cols + j]! ** 2;
    return 1 / Math.sqrt(squares / cols + eps);
  });

  testKernel(`rmsNorm of ${rows} × ${cols}`, {
    async run(engine, blocks) {
      const y = blocks.empty(rows * cols * 4);
      const r = blocks.empty(rows * 4);
      engine.rmsNorm(blocks.of(x), blocks.of(w), y, r, rows, cols, eps, 0);
      const shifted = blocks.empty(rows * cols * 4);
      engine.rmsNorm(blocks.of(x), blocks.of(w), shifted, r, rows, cols, eps, 1);
      return [await blocks.read(y, rows * cols), await blocks.read(shifted, rows * cols), await blocks.read(r, rows)];
    },
    expected: () => [
      Array.from(x, (value, i) => value * rstd[Math.floor(i / cols)]! * w[i % cols]!),
      Array.from(x, (value, i) => value * rstd[Math.floor(i / cols)]! * (w[i % cols]! + 1)),
      rstd,
    ],
    tolerance: 1e-6,
  });

  testKernel(`rmsNormGrad and rmsNormWeightGrad of ${rows} × ${cols}`, {
    async run(engine, blocks) {
      const [d, a, weight, r] = [blocks.of(dy), blocks.of(x), blocks.of(w), blocks.of(Float32Array.from(rstd))] as const;
      const dx = blocks.empty(rows * cols * 4);
      const added = blocks.of(before);
      const dw = blocks.empty(cols * 4);
      const dwAdded = blocks.of(w);
      engine.rmsNormGrad(d, a, weight, r, dx, rows, cols, 0.5, false);
      engine.rmsNormGrad(d, a, weight, r, added, rows, cols, 0.5, true);
      engine.rmsNormWeightGrad(d, a, r, dw, rows, cols, false);
      engine.rmsNormWeightGrad(d, a, r, dwAdded, rows, cols, true);
      return [
        await blocks.read(dx, rows * cols),
        await blocks.read(added, rows * cols),
        await blocks.read(dw, cols),
        await blocks.read(dwAdded, cols),
      ];
    },
    expected: () => {
      const dx = new Float64Array(rows * cols);
      const dw = new Float64Array(cols);
      for (let row = 0; row < rows; row++) {
        const r = rstd[row]!;
        let mean = 0;
        for (let j = 0; j < cols; j++) mean += (dy[row * cols + j]! * (w[j]! + 0.5) * x[row * cols + j]!) / cols;
        for (let j = 0; j < cols; j++) {
          const i = row * cols + j;
          dx[i] = r * dy[i]! * (w[j]! + 0.5) - x[i]! * r ** 3 * mean;
          dw[j]! += dy[i]! * x[i]! * r;
        }
      }
      return [dx, dx.map((value, i) => value + before[i]!), dw, dw.map((value, j) => value + w[j]!)];
    },
    tolerance: 2e-6,
  });
}

for (const [rows, cols] of shapes) {
  const x = randomFloats(rows * cols, 1).map((value) => value + 3);
  const [w, b] = [randomFloats(cols, 2), randomFloats(cols, 3)] as const;
  const [dy, before] = [randomFloats(rows * cols, 4), randomFloats(rows * cols, 5)] as const;
  const eps = 1e-5;
  const means = new Float64Array(rows);
  const rstd = new Float64Array(rows);
  for (let row = 0; row < rows; row++) {
    const values = x.subarray(row * cols, (row + 1) * cols);
    means[row] = values.reduce((sum, value) => sum + value, 0) / cols;
    rstd[row] = 1 / Math.sqrt(values.reduce((sum, value) => sum + (value - means[row]!) ** 2, 0) / cols + eps);
  }
  const normal = Float64Array.from(x, (value, i) => (value - means[Math.floor(i / cols)]!) * rstd[Math.floor(i / cols)]!);

  testKernel(`layerNorm and its gradients of ${rows} × ${cols}`, {
    async run(engine, blocks) {
      const [d, a, weight] = [blocks.of(dy), blocks.of(x), blocks.of(w)] as const;
      const [y, mean, r] = [blocks.empty(rows * cols * 4), blocks.empty(rows * 4), blocks.empty(rows * 4)] as const;
      const [dx, added, dw, dwAdded] = [
        blocks.empty(rows * cols * 4),
        blocks.of(before),
        blocks.empty(cols * 4),
        blocks.of(w),
      ] as const;
      engine.layerNorm(a, weight, blocks.of(b), y, mean, r, rows, cols, eps);
      engine.layerNormGrad(d, a, weight, mean, r, dx, rows, cols, false);
      engine.layerNormGrad(d, a, weight, mean, r, added, rows, cols, true);
      engine.layerNormWeightGrad(d, a, mean, r, dw, rows, cols, false);
      engine.layerNormWeightGrad(d, a, mean, r, dwAdded, rows, cols, true);
      const wholes = await Promise.all([y, dx, added].map((id) => blocks.read(id, rows * cols)));
      return [...wholes, await blocks.read(dw, cols), await blocks.read(dwAdded, cols), await blocks.read(r, rows)];
    },
    expected: () => {
      const dx = new Float64Array(rows * cols);
      const dw = new Float64Array(cols);
      for (let row = 0; row < rows; row++) {
        let [level, pull] = [0, 0];
        for (let j = 0, i = row * cols; j < cols; j++, i++) {
          level += (dy[i]! * w[j]!) / cols;
          pull += (dy[i]! * w[j]! * normal[i]!) / cols;
          dw[j]! += dy[i]! * normal[i]!;
        }
        for (let j = 0, i = row * cols; j < cols; j++, i++) dx[i] = rstd[row]! * (dy[i]! * w[j]! - level - normal[i]! * pull);
      }
      const y = normal.map((value, i) => value * w[i % cols]! + b[i % cols]!);
      return [y, dx, dx.map((value, i) => value + before[i]!), dw, dw.map((value, j) => value + w[j]!), rstd];
    },
    tolerance: 4e-6,
  });
}

testKernel("copyColumns", {
  async run(engine, blocks) {
    const [x, y, added] = [
      blocks.of(randomFloats(33 * 70, 1)),
      blocks.of(randomFloats(33 * 90, 2)),
      blocks.of(randomFloats(33 * 90, 2)),
    ];
    engine.copyColumns(x, 70, 3, y, 90, 20, 33, 67, false);
    engine.copyColumns(x, 70, 3, added, 90, 20, 33, 67, true);
    return [await blocks.read(y, 33 * 90), await blocks.read(added, 33 * 90)];
  },
  expected: () => {
    const x = randomFloats(33 * 70, 1);
    const y = randomFloats(33 * 90, 2);
    const isInside = (i: number) => i % 90 >= 20 && i % 90 < 87;
    const from = (i: number) => x[Math.floor(i / 90) * 70 + (i % 90) - 17]!;
    return [y.map((value, i) => (isInside(i) ? from(i) : value)), y.map((value, i) => (isInside(i) ? value + from(i) : value))];
  },
  tolerance: 0,
});

for (const [rows, heads, headDim] of [
  [1, 1, 2],
  [7, 3, 6],
  [65, 9, 64],
  [40, 2, 34],
] as const) {
  const tableRows = 80;
  const half = headDim / 2;
  const x = randomFloats(rows * heads * headDim, 1);
  const positions = randomIndices(rows, tableRows, 2);
  const table = new Float32Array(tableRows * headDim);
  for (let position = 0; position < tableRows; position++) {
    for (let i = 0; i < half; i++) {
      const angle = position / 10000 ** (i / half);
      table[position * headDim + i] = Math.cos(angle);
      table[position * headDim + half + i] = Math.sin(angle);
    }
  }
  const rotate = (sign: number) => {
    const y = new Float64Array(x.length);
    for (let row = 0; row < rows; row++) {
      for (let head = 0; head < heads; head++) {
        for (let i = 0; i < half; i++) {
          const at = (row * heads + head) * headDim + i;
          const cosine = table[positions[row]! * headDim + i]!;
          const sine = sign * table[positions[row]! * headDim + half + i]!;
          y[at] = x[at]! * cosine - x[at + half]! * sine;
          y[at + half] = x[at + half]! * cosine + x[at]! * sine;
        }
      }
    }
    return y;
  };

  testKernel(`rope of ${rows} × ${heads} × ${headDim}`, {
    async run(engine, blocks) {
      const input = blocks.of(x);
      const angles = blocks.of(table);
      const inverse = blocks.empty(x.byteLength);
      engine.rope(input, inverse, angles, positions, tableRows, heads, headDim, true);
      engine.rope(input, input, angles, positions, tableRows, heads, headDim, false); // in place
      return [await blocks.read(inverse, x.length), await blocks.read(input, x.length)];
    },
    expected: () => [rotate(-1), rotate(1)],
    tolerance: 2e-7,
  });
}

for (const [rows, vocab, smoothing] of [
  [1, 1, 0],
  [1, 7, 0],
  [9, 63, 0],
  [33, 4097, 0],
  [3, 49152, 0],
  [1, 1, 0.1],
  [9, 63, 1],
  [33, 4097, 0.1],
  [3, 49152, 0.3],
] as const) {
  const logits = randomFloats(rows * vocab, 1, 5);
  const targets = randomIndices(rows, vocab, 2);
  const softmax = (row: number) => {
    const x = logits.subarray(row * vocab, (row + 1) * vocab);
    const max = x.reduce((a, b) => Math.max(a, b), -Infinity);
    const sum = x.reduce((total, value) => total + Math.exp(value - max), 0);
    return { probabilities: Array.from(x, (value) => Math.exp(value - max) / sum), log: Math.log(sum) + max };
  };

  testKernel(`crossEntropy of ${rows} × ${vocab}, smoothed by ${smoothing}`, {
    async run(engine, blocks) {
      const x = blocks.of(logits);
      const losses = blocks.empty(rows * 4);
      engine.crossEntropy(x, targets, losses, vocab, smoothing, false);
      const lossesOnly = await blocks.read(losses, rows);
      const untouched = await blocks.read(x, rows * vocab);
      engine.crossEntropy(x, targets, losses, vocab, smoothing, true);
      return [lossesOnly, untouched, await blocks.read(losses, rows), await blocks.read(x, rows * vocab)];
    },
    expected: () => {
      const wanted = (j: number, target: number) => smoothing / vocab + (j === target ? 1 - smoothing : 0);
      const losses = Array.from(targets, (target, row) => {
        const { log } = softmax(row);
        const x = logits.subarray(row * vocab, (row + 1) * vocab);
        return x.reduce((loss, value, j) => loss + wanted(j, target) * (log - value), 0);
      });
      const grads = Array.from(targets, (target, row) => softmax(row).probabilities.map((p, j) => p - wanted(j, target)));
      return [losses, logits, losses, grads.flat()];
    },
    tolerance: 1e-6,
  });
}

testKernel("crossEntropy of logits far from 0, and of hopeless ones", {
  async run(engine, blocks) {
    const x = blocks.of(Float32Array.of(1e4, 1e4, -1e4, 1e4, 0, -3e4));
    const losses = blocks.empty(8);
    engine.crossEntropy(x, Int32Array.of(0, 2), losses, 3, 0, true);
    return [await blocks.read(losses, 2), await blocks.read(x, 6)];
  },
  expected: () => [
    [Math.LN2, 4e4],
    [-0.5, 0.5, 0, 1, 0, -1],
  ],
  tolerance: 1e-6,
});

for (const [rows, cols] of [
  [0, 8],
  [1, 1],
  [20, 7],
  [9, 65],
  [500, 64],
] as const) {
  const tableRows = 11;
  const table = randomFloats(tableRows * cols, 1);
  const x = randomFloats(rows * cols, 2);
  const ids = randomIndices(rows, tableRows, 3); // repeats, where rows > 11

  testKernel(`embedding and rows of ${rows} × ${cols}`, {
    async run(engine, blocks) {
      const w = blocks.of(table);
      const input = blocks.of(x);
      const y = blocks.empty(rows * cols * 4);
      const gathered = blocks.empty(rows * cols * 4);
      engine.embedding(ids, w, "f32", y, cols, tableRows);
      engine.gatherRows(w, ids, gathered, tableRows, cols);
      const outputs = [await blocks.read(y, rows * cols), await blocks.read(gathered, rows * cols)];
      const added = blocks.of(table);
      engine.embeddingGrad(ids, input, w, cols, tableRows);
      engine.scatterRows(input, ids, added, tableRows, cols, true);
      outputs.push(await blocks.read(w, tableRows * cols), await blocks.read(added, tableRows * cols));
      const replaced = blocks.of(table);
      engine.scatterRows(input, ids, replaced, tableRows, cols, false);
      return [...outputs, await blocks.read(replaced, tableRows * cols)];
    },
    expected: () => {
      const taken = Array.from(x, (_, i) => table[ids[Math.floor(i / cols)]! * cols + (i % cols)]!);
      const added = Float64Array.from(table);
      const replaced = Float64Array.from(table);
      for (let i = 0; i < x.length; i++) {
        const at = ids[Math.floor(i / cols)]! * cols + (i % cols);
        added[at]! += x[i]!;
        replaced[at] = x[i]!;
      }
      return [taken, taken, added, added, replaced];
    },
    tolerance: 1e-6,
  });
}

const bf16 = randomFloats(6 * 65, 9).map((value) => {
  const bits = new Uint32Array(Float32Array.of(value).buffer);
  return new Float32Array(new Uint32Array([bits[0]! & 0xffff0000]).buffer)[0]!;
});
testKernel("embedding of bf16 rows", {
  async run(engine, blocks) {
    const w = blocks.of(Uint16Array.from(new Uint32Array(bf16.buffer), (bits) => bits >>> 16));
    const y = blocks.empty(3 * 65 * 4);
    engine.embedding(Int32Array.of(5, 0, 5), w, "bf16", y, 65, 6);
    return [await blocks.read(y, 3 * 65)];
  },
  expected: () => [[...bf16.slice(5 * 65), ...bf16.slice(0, 65), ...bf16.slice(5 * 65)]],
  tolerance: 0,
});

for (const count of [1, 7, 65, 40000]) {
  const [p, g, m] = [randomFloats(count, 1), randomFloats(count, 2), randomFloats(count, 3, 0.1)] as const;
  const v = randomFloats(count, 4, 0.1).map(Math.abs);
  const step = { lr: 3e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.1, gradScale: 0.25 };
  const corrections = { correction1: 1 - 0.9 ** 3, correction2: 1 - 0.999 ** 3 };
  testKernel(`adamw of ${count}`, {
    async run(engine, blocks) {
      const ids = [p, g, m, v].map((values) => blocks.of(values)) as [number, number, number, number];
      engine.adamw(...ids, blocks.of(new Float32Array(1)), count, { ...step, ...corrections });
      return [await blocks.read(ids[0], count), await blocks.read(ids[2], count), await blocks.read(ids[3], count)];
    },
    expected: () => {
      const grads = Array.from(g, (value) => value * step.gradScale);
      const m1 = grads.map((grad, i) => step.beta1 * m[i]! + (1 - step.beta1) * grad);
      const v1 = grads.map((grad, i) => step.beta2 * v[i]! + (1 - step.beta2) * grad * grad);
      const p1 = Array.from(p, (value, i) => {
        const update = m1[i]! / corrections.correction1 / (Math.sqrt(v1[i]! / corrections.correction2) + step.eps);
        return value - step.lr * step.weightDecay * value - step.lr * update;
      });
      return [p1, m1, v1];
    },
    tolerance: 3e-7,
  });
}

for (const count of [1, 7, 65, 40000]) {
  const [x, y, m] = [randomFloats(count, 1), randomFloats(count, 2), randomFloats(count, 3, 0.1)] as const;
  testKernel(`blend of ${count}`, {
    async run(engine, blocks) {
      const [from, to] = [blocks.of(x), blocks.of(y)];
      engine.blend(from, to, blocks.of(new Float32Array(1)), count, 0.9, -0.3);
      return [await blocks.read(to, count)];
    },
    expected: () => [Array.from(y, (value, i) => 0.9 * value - 0.3 * x[i]!)],
    tolerance: 3e-7,
  });
  const step = { lr: 3e-3, beta1: 0.9, beta2: 0.99, weightDecay: 0.1, gradScale: 0.25 };
  testKernel(`lion of ${count}`, {
    async run(engine, blocks) {
      const [p, momentum] = [blocks.of(y), blocks.of(m)];
      engine.lion(p, blocks.of(x), momentum, blocks.of(new Float32Array(1)), count, step);
      return [await blocks.read(p, count), await blocks.read(momentum, count)];
    },
    expected: () => [
      Array.from(y, (p, i) => p * (1 - 3e-4) - 3e-3 * Math.sign(0.9 * m[i]! + 0.1 * 0.25 * x[i]!)),
      Array.from(m, (value, i) => 0.99 * value + 0.01 * 0.25 * x[i]!),
    ],
    tolerance: 3e-7,
  });
  const squares = x.reduce((sum, value) => sum + value * value, 0);
  for (const scale of [1e-2, 1e3])
    testKernel(`limitRms of ${count}, times ${scale}`, {
      async run(engine, blocks) {
        const id = blocks.of(x.map((value) => value * scale));
        engine.limitRms(id, blocks.of(Float32Array.of(squares * scale ** 2)), count);
        return [await blocks.read(id, count)];
      },
      expected: () => [Array.from(x, (value) => (value * scale) / Math.max(1, scale * Math.sqrt(squares / count)))],
      tolerance: 1e-6,
    });
}

testKernel("blend and lion count the numbers that they leave not finite; a gradient of 0 leaves a weight where it is", {
  async run(engine, blocks) {
    const count = 40000;
    const flaws = blocks.of(Float32Array.of(5));
    const weights = new Float32Array(count).fill(1);
    const told: Float32Array[] = [];
    const tell = async () => told.push(await blocks.read(flaws, 1));
    const [x, y] = [weights.slice(), weights.slice()];
    x[3] = Number.NaN;
    y[16384] = Number.POSITIVE_INFINITY;
    engine.blend(blocks.of(x), blocks.of(y), flaws, count, 1, 1);
    await tell();
    const step = { lr: 1e-3, beta1: 0.9, beta2: 0.99, weightDecay: 0, gradScale: 1 };
    const lion = (p: Float32Array, g: Float32Array, m: Float32Array) => {
      const id = blocks.of(p);
      engine.lion(id, blocks.of(g), blocks.of(m), flaws, count, step);
      return id;
    };
    const moment = new Float32Array(count);
    moment[39999] = Number.NaN;
    lion(y, x, moment);
    await tell(); // a weight, a gradient and a moment
    const stays = lion(weights, new Float32Array(count), new Float32Array(count));
    told.push((await blocks.read(stays, count)).slice(0, 1));
    await tell();
    return told;
  },
  expected: () => [[7], [10], [1], [10]],
  tolerance: 0,
});

const [finite, huge] = [1e-3, 1e38];
const flawsOf = (method: "adamw" | "adamw8bit") =>
  testKernel(`${method} counts the numbers that it leaves not finite, or with a moment that is not`, {
    async run(engine, blocks) {
      const count = 40000;
      const flaws = blocks.of(Float32Array.of(5));
      const step = { lr: 1, beta1: 0.9, beta2: 0.999, eps: 0, weightDecay: 0, gradScale: 1, correction1: 1, correction2: 1 };
      const moments = () => blocks.of(new Float32Array(method === "adamw" ? count : Math.ceil(count / 256) * 65));
      const update = (p: Float32Array, g: Float32Array, lr = 1) =>
        engine[method](blocks.of(p), blocks.of(g), moments(), moments(), flaws, count, { ...step, lr });
      const told: Float32Array[] = [];
      const tell = async () => told.push(await blocks.read(flaws, 1));

      const ones = new Float32Array(count).fill(1);
      update(ones, ones, finite);
      await tell(); // nothing
      const weights = ones.slice();
      weights[0] = Number.NaN;
      weights[16383] = Number.POSITIVE_INFINITY;
      weights[39999] = Number.NEGATIVE_INFINITY;
      update(weights, ones, finite);
      await tell(); // p
      const gradient = ones.slice();
      gradient[20000] = 1e30; // its square is not finite: v
      update(ones, gradient, finite);
      await tell();
      gradient[20000] = 0; // 0 / 0, as eps is 0
      update(ones, gradient, finite);
      await tell();
      update(new Float32Array(count).fill(-3e38), ones, huge);
      await tell(); // all, by the size of the step
      return told;
    },
    expected: () => [[5], [8], [9], [10], [40010]],
    tolerance: 0,
  });
flawsOf("adamw");
flawsOf("adamw8bit");
