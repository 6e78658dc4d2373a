/**
 * Speed of matrix products with weights of given shapes (N × K), as a model uses them. Prints one JSON line.
 *
 *   node dist/bench/products.js --shape 576x576 --shape 1536x576 [--rows 2048] [--weights f32] [--compute f32]
 */
import { parseArgs } from "node:util";
import { type DType, dtypes } from "../src/engine/dtype.js";
import { loadEngine } from "../src/engine/load.js";
import { measureProduct } from "./kernels.js";

const { values } = parseArgs({
  options: {
    shape: { type: "string", multiple: true, default: [] },
    rows: { type: "string", default: "2048" },
    weights: { type: "string", default: "f32" },
    compute: { type: "string", default: "f32" },
  },
});
const { weights, compute } = values;
if (!isDType(weights)) throw new Error(`--weights: expected one of ${Object.keys(dtypes).join(", ")}, got ${weights}`);
if (compute !== "f32" && compute !== "bf16") throw new Error(`--compute: expected f32 or bf16, got ${compute}`);

const engine = loadEngine();
const total = { flops: 0, forward: 0, inputGrad: 0, atLimit: 0 };
for (const shape of values.shape) {
  const [n, k] = shape.split("x").map(Number) as [number, number];
  const times = await measureProduct(engine, { m: Number(values.rows), n, k, wType: weights, compute });
  total.flops += times.flops;
  total.forward += times.forward;
  total.inputGrad += times.inputGrad;
  total.atLimit += times.flops / times.peakFlops;
}
console.log(
  JSON.stringify({
    forward_gflops: total.flops / total.forward / 1e9,
    input_grad_gflops: total.flops / total.inputGrad / 1e9,
    // The limit is that of f32: bf16 instructions have another.
    ...(compute === "f32"
      ? { forward_share: total.atLimit / total.forward, input_grad_share: total.atLimit / total.inputGrad }
      : {}),
  }),
);

function isDType(name: string): name is DType {
  return Object.hasOwn(dtypes, name);
}
