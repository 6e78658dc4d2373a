/**
 * The trend of a noisy curve: the mean of two exponential moving averages, one from each end, so that it does not lag behind the values.
 * They reach further the more values there are.
 */
export function smooth(values: readonly number[]): number[] {
  const keep = 1 - 1 / (1 + values.length / 20);
  const forward = movingAverage(values, keep);
  const backward = movingAverage([...values].reverse(), keep).reverse();
  return forward.map((value, i) => (value + backward[i]!) / 2);
}

/** Divides by the weights so far, as Adam does, so that it starts at the first value. */
function movingAverage(values: readonly number[], keep: number): number[] {
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    sum = keep * sum + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return sum / weight;
  });
}
