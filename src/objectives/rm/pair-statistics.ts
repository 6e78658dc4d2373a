/** Statistics of paired comparisons. */

/** Of a normal distribution: 95 % lie within so many deviations. */
const z = 1.959963984540054;

/** Wilson's interval of a share at 95 %. Source: Wilson 1927; without pairs it is all of 0 to 1. */
export function wilson(hits: number, count: number): [low: number, high: number] {
  if (count === 0) return [0, 1];
  const share = hits / count;
  const centre = share + (z * z) / (2 * count);
  const spread = z * Math.sqrt((share * (1 - share)) / count + (z * z) / (4 * count * count));
  const scale = 1 + (z * z) / count;
  return [Math.max(0, (centre - spread) / scale), Math.min(1, (centre + spread) / scale)];
}

/**
 * McNemar's exact test, two-sided: how likely two judges who are equally good differ at least so much. `a` cases only the first has right, `b` only the
 * second: 2 · P(X ≥ max(a, b)), X binomial of a + b coins; at most 1.
 */
export function mcnemar(a: number, b: number): number {
  const n = a + b;
  let logTerm = -n * Math.LN2; // of the binomial coefficient over 2ⁿ at k = n
  let tail = 0;
  for (let k = n; k >= Math.max(a, b); k--) {
    tail += Math.exp(logTerm);
    logTerm += Math.log(k) - Math.log(n - k + 1);
  }
  return Math.min(1, 2 * tail);
}

/** Spearman's rank correlation; equal values share their mean rank. 0 where one of the two is all the same. */
export function spearman(x: readonly number[], y: readonly number[]): number {
  return correlation(ranks(x), ranks(y));
}

function ranks(values: readonly number[]): number[] {
  const order = values.map((_, i) => i).sort((a, b) => values[a]! - values[b]!);
  const found = new Array<number>(values.length);
  for (let from = 0; from < order.length; ) {
    let to = from;
    while (to < order.length && values[order[to]!] === values[order[from]!]) to++;
    for (let i = from; i < to; i++) found[order[i]!] = (from + to - 1) / 2;
    from = to;
  }
  return found;
}

function correlation(x: readonly number[], y: readonly number[]): number {
  const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [mx, my] = [mean(x), mean(y)];
  let [xx, yy, xy] = [0, 0, 0];
  for (const [i, value] of x.entries()) {
    xx += (value - mx) ** 2;
    yy += (y[i]! - my) ** 2;
    xy += (value - mx) * (y[i]! - my);
  }
  return xx === 0 || yy === 0 ? 0 : xy / Math.sqrt(xx * yy);
}

/**
 * Expected calibration error of judges who say how sure they are: Σ over 10 bins of confidence from ½ to 1 of the bin's share of cases times
 * |accuracy − mean confidence|. Source: Guo et al. 2017, arXiv:1706.04599, eq. 3; for two classes confidence begins at ½. `probabilities` are those that the
 * right answer got.
 */
export function calibrationError(probabilities: readonly number[]): number {
  const bins = Array.from({ length: 10 }, () => ({ hits: 0, confidence: 0, count: 0 }));
  for (const p of probabilities) {
    const confidence = Math.max(p, 1 - p);
    const bin = bins[Math.min(9, Math.floor((confidence - 0.5) * 20))]!;
    bin.count++;
    bin.confidence += confidence;
    if (p > 0.5) bin.hits++;
  }
  return bins.reduce((sum, { hits, confidence }) => sum + Math.abs(hits - confidence), 0) / Math.max(1, probabilities.length);
}

/**
 * A judge of lengths: a logistic regression of which of two answers is chosen on z and z², z the standardised logarithm of a length; it may like any length
 * best. Fitted by Newton's method with a little ridge, so that data which it explains whole has a solution. Returns what it prefers: above 0 the first
 * length, below 0 the second, 0 where they are equal.
 */
export function lengthJudge(pairs: readonly (readonly [chosen: number, rejected: number])[]): (a: number, b: number) => number {
  const logs = pairs.flat().map((length) => Math.log(1 + length));
  const mean = logs.reduce((sum, value) => sum + value, 0) / Math.max(1, logs.length);
  const deviation = Math.sqrt(logs.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(1, logs.length)) || 1;
  const features = (a: number, b: number): [number, number] => {
    const [x, y] = [a, b].map((length) => (Math.log(1 + length) - mean) / deviation) as [number, number];
    return [x - y, x * x - y * y];
  };
  const rows = pairs.map(([chosen, rejected]) => features(chosen, rejected));
  let [u, v] = [0, 0];
  for (let iteration = 0; iteration < 30; iteration++) {
    let [gu, gv, huu, huv, hvv] = [-ridge * u, -ridge * v, ridge, 0, ridge];
    for (const [a, b] of rows) {
      const wrong = 1 / (1 + Math.exp(u * a + v * b));
      const curvature = wrong * (1 - wrong);
      gu += wrong * a;
      gv += wrong * b;
      huu += curvature * a * a;
      huv += curvature * a * b;
      hvv += curvature * b * b;
    }
    const determinant = huu * hvv - huv * huv;
    u += (hvv * gu - huv * gv) / determinant;
    v += (huu * gv - huv * gu) / determinant;
  }
  return (a, b) => {
    const [x, y] = features(a, b);
    return u * x + v * y;
  };
}

const ridge = 0.1;
