/**
 * Where the time of a training step goes, by kernel, against the machine's limits. Options as for step.js:
 *
 *   node dist/bench/profile.js --model MODEL [--method lora] [--rows 4] [--tokens 512] [--compute f32] [--checkpointing]
 */
import { parseArgs } from "node:util";
import { fastestCompute, loadEngine } from "../src/engine/load.js";
import { measureLimits } from "./kernels.js";
import { formatTable } from "./table.js";
import { timeTraining, trainingOptions, trainingWork } from "./training.js";

process.env.ATTUNE_PROFILE = "1"; // the engine reads it when it is loaded
const { values } = parseArgs({ options: trainingOptions });
const engine = loadEngine();
const work = { ...trainingWork(values, fastestCompute(engine.info())), accumulate: 1 };
let stepsDone = 0;
const { stepSeconds, cost } = await timeTraining(engine, work, () => {
  if (++stepsDone === 1) engine.profile(); // forgets loading and the first step
});
const profile = engine.profile().sort((a, b) => b.seconds - a.seconds);
const limits = await measureLimits(engine, work.compute);
const steps = stepsDone - 1;
const stepSum = stepSeconds.slice(1).reduce((sum, seconds) => sum + seconds, 0);
const percent = (share: number) => `${(100 * share).toFixed(0)} %`;

const rows = profile.map(({ name, calls, seconds }) => {
  const { flops, bytesMoved } = cost.byKernel.get(name) ?? { flops: 0, bytesMoved: 0 };
  const [flopRate, byteRate] = [flops * steps, bytesMoved * steps].map((work) => work / seconds) as [number, number];
  const [arithmetic, memory] = [flopRate / limits.flops, byteRate / limits.bytesPerSecond];
  return [
    name,
    (calls / steps).toFixed(0),
    ((1000 * seconds) / steps).toFixed(1),
    percent(seconds / stepSum),
    (flopRate / 1e9).toFixed(1),
    (byteRate / 1e9).toFixed(1),
    arithmetic > memory ? `${percent(arithmetic)} of arithmetic` : `${percent(memory)} of memory`,
  ];
});
const kernelSum = profile.reduce((sum, { seconds }) => sum + seconds, 0);
const { cpu, isa, threads } = engine.info();
console.log(
  `${cpu}, ${isa}, ${threads} threads; limits ${(limits.flops / 1e9).toFixed(0)} GFLOP/s of ${work.compute}, ${(limits.bytesPerSecond / 1e9).toFixed(1)} GB/s`,
);
console.log(
  `${work.method}, ${work.rows} × ${work.tokens} tokens, ${work.compute}: ${((1000 * stepSum) / steps).toFixed(0)} ms a step, of which ${percent(1 - kernelSum / stepSum)} outside of kernels\n`,
);
console.log(formatTable(["kernel", "calls", "ms a step", "share", "GFLOP/s", "GB/s", "limit"], rows));
