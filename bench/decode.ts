/** Times generation after a prompt of random tokens, the likeliest token each time. Prints one JSON line. */
import { parseArgs } from "node:util";
import type { Device } from "../src/core/device.js";
import { Rng } from "../src/core/rng.js";
import { SymbolicDevice } from "../src/core/symbolic.js";
import { fastestCompute, loadEngine } from "../src/engine/load.js";
import { ConfigError } from "../src/errors.js";
import { Decoder, type Request } from "../src/generate/decoder.js";
import { greedy } from "../src/generate/sampling.js";
import { resolveModel } from "../src/io/resolve.js";
import { asCausalLM, type CausalLM } from "../src/models/causal-lm.js";
import { buildModel, loadWeights, placeWeights } from "../src/models/load.js";
import { peakMemoryBytes } from "../src/train/peak-memory.js";
import { SharedBase } from "../src/tuners/shared-base.js";
import { measureLimits } from "./kernels.js";

const { values } = parseArgs({
  options: {
    model: { type: "string" },
    batch: { type: "string", default: "1" },
    "prompt-tokens": { type: "string", default: "40" },
    "new-tokens": { type: "string", default: "64" },
  },
});
if (values.model === undefined) throw new ConfigError("--model is missing: a folder, a GGUF file or a name of the hub");
const [batch, promptTokens, newTokens] = [values.batch, values["prompt-tokens"], values["new-tokens"]].map(Number) as [
  number,
  number,
  number,
];

const engine = loadEngine();
const files = await resolveModel(values.model);
const compute = fastestCompute(engine.info());
const model = modelOn({ kernels: engine, compute });
await loadWeights(model, files);
await generate(model, 4); // to warm up
const { promptSeconds, decodeSeconds } = await generate(model, newTokens);
const peakBytes = peakMemoryBytes();
const bytesPerStep = await bytesMovedByStep();
const limits = await measureLimits(engine, compute);
const steps = newTokens - 1; // the prompt's pass gives the first token
console.log(
  JSON.stringify({
    tokens_per_second: (batch * newTokens) / (promptSeconds + decodeSeconds),
    decode_tokens_per_second: (batch * steps) / decodeSeconds,
    prompt_tokens_per_second: (batch * promptTokens) / promptSeconds,
    peak_rss_gb: peakBytes / 1e9,
    share: (bytesPerStep * steps) / decodeSeconds / limits.bytesPerSecond,
  }),
);

function modelOn(device: Device): CausalLM {
  return asCausalLM(buildModel(device, files.config, files.path), "decoding");
}

function decoderFor(model: CausalLM, maxNewTokens: number): Decoder {
  const decoder = new Decoder(new SharedBase(model), { slots: batch });
  const rng = new Rng(0);
  for (let i = 0; i < batch; i++) {
    const prompt = Int32Array.from({ length: promptTokens }, () => rng.below(model.shape.vocabSize));
    const request: Request = { prompt, maxNewTokens, stopIds: new Set(), sampling: greedy, seed: 0 };
    decoder.add(request);
  }
  return decoder;
}

async function generate(model: CausalLM, maxNewTokens: number): Promise<{ promptSeconds: number; decodeSeconds: number }> {
  const decoder = decoderFor(model, maxNewTokens);
  const startMs = performance.now();
  await decoder.step();
  const promptMs = performance.now();
  while (!decoder.isIdle) await decoder.step();
  const endMs = performance.now();
  decoder.dispose();
  return { promptSeconds: (promptMs - startMs) / 1000, decodeSeconds: (endMs - promptMs) / 1000 };
}

/** What a step after the prompt reads and writes: above all the weights. */
async function bytesMovedByStep(): Promise<number> {
  const device = new SymbolicDevice(compute);
  const symbolic = modelOn(device);
  placeWeights(symbolic, files);
  const decoder = decoderFor(symbolic, 2);
  await decoder.step();
  device.reset();
  await decoder.step();
  return device.cost.bytesMoved;
}
