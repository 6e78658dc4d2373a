/** How the learning rate changes over the steps; names as in transformers. */
export const scheduleNames = ["linear", "cosine", "constant", "constant_with_warmup"] as const;
export type ScheduleName = (typeof scheduleNames)[number];

/**
 * The factor on the learning rate at optimizer step `step` (from 0) of `total`: rises over `warmup` steps from 0, then follows the curve.
 * Source: transformers `optimization.py` (get_linear_, get_cosine_schedule_with_warmup): like there, step 0 of a warmup has rate 0.
 */
export function scheduleFactor(name: ScheduleName, step: number, warmup: number, total: number): number {
  if (name === "constant") return 1;
  if (step < warmup) return step / Math.max(1, warmup);
  if (name === "constant_with_warmup") return 1;
  const progress = (step - warmup) / Math.max(1, total - warmup);
  return name === "linear" ? Math.max(0, 1 - progress) : Math.max(0, 0.5 * (1 + Math.cos(Math.PI * progress)));
}
