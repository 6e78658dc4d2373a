/**
 * Times llama.cpp, by node-llama-cpp, as decode.js times attune. Prints one JSON line. node-llama-cpp is no dependency: `--llama` names a folder
 * where it and its prebuilt binary were installed. Nothing is compiled or downloaded here:
 *
 *   npm install --ignore-scripts --omit=optional node-llama-cpp @node-llama-cpp/linux-x64
 */
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { ConfigError } from "../src/errors.js";
import { peakMemoryBytes } from "../src/train/peak-memory.js";

const { values } = parseArgs({
  options: {
    llama: { type: "string" },
    model: { type: "string" },
    threads: { type: "string", default: "2" },
    "prompt-tokens": { type: "string", default: "512" },
    "new-tokens": { type: "string", default: "64" },
  },
});
const { llama: folder, model: modelPath } = values;
if (folder === undefined || modelPath === undefined) throw new ConfigError("--llama FOLDER and --model FILE.gguf are needed");
const [threads, promptTokens, newTokens] = [values.threads, values["prompt-tokens"], values["new-tokens"]].map(Number) as [
  number,
  number,
  number,
];

/** As much of node-llama-cpp 3 as is used here. */
interface NodeLlamaCpp {
  getLlama(options: object): Promise<Llama>;
}
interface Llama {
  loadModel(options: object): Promise<LlamaModel>;
  dispose(): Promise<void>;
}
interface LlamaModel {
  createContext(options: object): Promise<{ getSequence(): Sequence }>;
}
interface Sequence {
  evaluate(tokens: number[], options: object): AsyncIterable<number>;
  clearHistory(): Promise<void>;
}

const entry = join(folder, "node_modules/node-llama-cpp/dist/index.js");
const { getLlama } = (await import(pathToFileURL(entry).href)) as NodeLlamaCpp;
const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, maxThreads: threads, logLevel: "error" });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({ contextSize: promptTokens + newTokens + 8, batchSize: promptTokens, threads });
const sequence = context.getSequence();
await generate(4); // to warm up
await sequence.clearHistory();
const { promptSeconds, decodeSeconds } = await generate(newTokens);
console.log(
  JSON.stringify({
    decode_tokens_per_second: (newTokens - 1) / decodeSeconds, // the prompt's pass gives the first token
    prompt_tokens_per_second: promptTokens / promptSeconds,
    peak_rss_gb: peakMemoryBytes() / 1e9,
  }),
);
await llama.dispose();

async function generate(count: number): Promise<{ promptSeconds: number; decodeSeconds: number }> {
  const prompt = Array.from({ length: promptTokens }, (_, i) => 1000 + ((i * 7919) % 40_000)); // ordinary tokens of SmolLM2
  const startMs = performance.now();
  let promptMs = 0;
  let seen = 0;
  for await (const _ of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    if (++seen === 1) promptMs = performance.now();
    if (seen === count) break;
  }
  const endMs = performance.now();
  return { promptSeconds: (promptMs - startMs) / 1000, decodeSeconds: (endMs - promptMs) / 1000 };
}
