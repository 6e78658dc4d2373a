/**
 * The trend of a noisy curve: the mean of two exponential moving averages, one from each end, so that it does not lag behind the values.
 * They reach further the more values there are.
 */
export function smooth(values: readonly number[]): number[] {
  const decay = 1 - 1 / (1 + values.length / 20);
  const forward = movingAverage(values, decay);
  const backward = movingAverage([...values].reverse(), decay).reverse();
  return forward.map((value, i) => (value + backward[i]!) / 2);
}

/** Divides by the weights so far, as Adam does, so that it starts at the first value. */
function movingAverage(values: readonly number[], decay: number): number[] {
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    sum = decay * sum + (1 - decay) * value;
    weight = decay * weight + (1 - decay);
    return sum / weight;
  });
}
