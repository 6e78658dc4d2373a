/**
 * Speed of matrix products, as many of each shape as a model needs: COUNTxMxNxK for x (M, K) and weights (N, K). Prints one JSON line.
 *
 *   node dist/bench/products.js [--weights bf16] [--compute f32] 60x2048x576x576 30x2048x576x1536 …
 */
import { parseArgs } from "node:util";
import { type DType, dtypes } from "../src/engine/dtype.js";
import { loadEngine } from "../src/engine/load.js";
import { ConfigError } from "../src/errors.js";
import { measureProduct } from "./kernels.js";

const { values, positionals } = parseArgs({
  options: { weights: { type: "string", default: "bf16" }, compute: { type: "string", default: "f32" } },
  allowPositionals: true,
});
const { weights, compute } = values;
if (!isDType(weights)) throw new ConfigError(`--weights: expected one of ${Object.keys(dtypes).join(", ")}, got ${weights}`);
if (compute !== "f32" && compute !== "bf16") throw new ConfigError(`--compute: expected f32 or bf16, got ${compute}`);

const engine = loadEngine();
const total = { flops: 0, forward: 0, inputGrad: 0, atLimit: 0 };
for (const product of positionals) {
  const [count, m, n, k] = product.split("x").map(Number) as [number, number, number, number];
  const times = await measureProduct(engine, { m, n, k, wType: weights, compute });
  total.flops += count * times.flops;
  total.forward += count * times.forward;
  total.inputGrad += count * times.inputGrad;
  total.atLimit += (count * times.flops) / times.peakFlops;
}
console.log(
  JSON.stringify({
    forward_gflops: total.flops / total.forward / 1e9,
    input_grad_gflops: total.flops / total.inputGrad / 1e9,
    forward_share: total.atLimit / total.forward,
    input_grad_share: total.atLimit / total.inputGrad,
  }),
);

function isDType(name: string): name is DType {
  return Object.hasOwn(dtypes, name);
}
