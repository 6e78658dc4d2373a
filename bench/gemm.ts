/**
 * Matrix products and attention at the shapes of a small language model, beside the machine's limit of fused multiplications and additions,
 * measured just before each line, because other work on the machine moves both.
 *
 *   node dist/bench/gemm.js [threads]        ATTUNE_ISA chooses the tier
 */
import { bytesOf, type DType } from "../src/engine/dtype.js";
import type { AttentionShape, ComputeType } from "../src/engine/kernels.js";
import { loadEngine } from "../src/engine/load.js";
import { fastestSeconds, filled, measureProduct } from "./kernels.js";

const engine = loadEngine();
if (process.argv[2]) engine.setThreads(Number(process.argv[2]));
const { isa, threads, cpu } = engine.info();
console.log(`${cpu}, ${isa}, ${threads} threads`);

const percent = (part: number, whole: number): string => `${((100 * part) / whole).toFixed(0)} %`.padStart(6);

async function benchProducts(m: number, n: number, k: number, wType: DType, compute: ComputeType): Promise<void> {
  const { forward, inputGrad, weightGrad, flops, peakFlops } = await measureProduct(engine, { m, n, k, wType, compute });
  const shape = `${m} × ${n} × ${k}`.padEnd(20) + `${wType} ${compute}`.padEnd(10);
  const rates = [forward, inputGrad, weightGrad].map((seconds) => flops / seconds);
  const columns = rates.map((rate) => `${(rate / 1e9).toFixed(1).padStart(8)}${percent(rate, peakFlops)}`);
  const weights = bytesOf(wType, n * k) / forward / 1e9;
  console.log(`${shape}${columns.join("  ")}   of ${(peakFlops / 1e9).toFixed(0)}   ${weights.toFixed(1)} GB/s of weights`);
}

async function benchAttention(
  count: number,
  length: number,
  keys: number,
  heads: number,
  kvHeads: number,
  headDim: number,
  compute: ComputeType,
): Promise<void> {
  const shape: AttentionShape = {
    ...{ qRows: count * length, kRows: count * keys, heads, kvHeads, headDim },
    ...{ scale: 1 / Math.sqrt(headDim), causal: true, window: 0, dropout: 0, seed: 0n },
  };
  const segments = Int32Array.from(Array.from({ length: count }, (_, i) => [i * length, length, i * keys, keys, 0, 0]).flat());
  const [qBytes, kBytes] = [shape.qRows * heads * headDim * 4, shape.kRows * kvHeads * headDim * 4];
  const array = (bytes: number) => filled(engine, bytes);
  const [q, o, dout, dq] = [array(qBytes), array(qBytes), array(qBytes), array(qBytes)];
  const [k, v, dk, dv] = [array(kBytes), array(kBytes), array(kBytes), array(kBytes)];
  const lse = array(shape.qRows * heads * 4);
  const peak = engine.peakFlops("f32");
  const pairs = count * heads * (length * keys - (length * (length - 1)) / 2);
  const forward = await fastestSeconds(engine, () => engine.attention(q, k, v, o, lse, segments, shape, compute));
  const backward = await fastestSeconds(engine, () =>
    engine.attentionGrad(q, k, v, o, lse, dout, dq, dk, dv, segments, shape, compute),
  );
  const name = `${count} × ${length} on ${keys}, heads ${heads}/${kvHeads} of ${headDim}, ${compute}`.padEnd(46);
  const rates = [(pairs * headDim * 4) / forward, (pairs * headDim * 10) / backward];
  console.log(
    name + rates.map((rate) => `${(rate / 1e9).toFixed(1).padStart(8)}${percent(rate, peak)}`).join("  "),
    `  ${((2 * kBytes) / forward / 1e9).toFixed(1)} GB/s of keys and values`,
  );
  for (const id of [q, o, dout, dq, k, v, dk, dv, lse]) engine.free(id);
}

console.log("\nM × N × K                        y = x Wᵀ, GFLOP/s      dx = dy W      dw = dyᵀ x");
for (const [m, n, k] of [
  [2048, 192, 576],
  [2048, 576, 576],
  [2048, 1536, 576],
  [2048, 576, 1536],
  [256, 49152, 576],
  [512, 1536, 576],
  [64, 1536, 576],
  [2048, 8, 576], // LoRA: A, and dz = dy B turned
  [2048, 1536, 8], // LoRA: B
  [1, 1536, 576],
  [8, 1536, 576],
] as const) {
  await benchProducts(m, n, k, "f32", "f32");
}
for (const type of ["bf16", "q8_0", "q4_0"] as const) {
  for (const m of [2048, 64, 8, 1]) await benchProducts(m, 1536, 576, type, "f32");
}
for (const type of ["q4_k", "q6_k"] as const) {
  for (const m of [2048, 1]) await benchProducts(m, 1536, 768, type, "f32");
}
for (const type of ["f32", "bf16"] as const) {
  for (const m of [2048, 64, 1]) await benchProducts(m, 1536, 576, type, "bf16");
}

console.log("\nattention                                        forward, GFLOP/s     backward");
for (const compute of ["f32", "bf16"] as const) {
  await benchAttention(4, 512, 512, 9, 3, 64, compute);
  await benchAttention(16, 128, 128, 9, 3, 64, compute);
  await benchAttention(1, 4096, 4096, 9, 3, 64, compute);
  await benchAttention(2, 512, 512, 16, 4, 128, compute);
}
await benchAttention(8, 1, 1024, 9, 3, 64, "f32");
