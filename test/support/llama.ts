import { join } from "node:path";
import { pathToFileURL } from "node:url";

/** A folder in which node-llama-cpp and its prebuilt binary were installed, if the user named one: bench/llama.ts says how. */
const folder = process.env.ATTUNE_LLAMA;

/** `false`, or why tests against llama.cpp are skipped. */
export const skipWithoutLlama = folder === undefined && "set ATTUNE_LLAMA to a folder with node-llama-cpp to run this";

/** As much of node-llama-cpp 3 as is used here. */
interface NodeLlamaCpp {
  getLlama(options: object): Promise<Llama>;
}
interface Llama {
  loadModel(options: object): Promise<LlamaModel>;
  dispose(): Promise<void>;
}
interface LlamaModel {
  tokenize(text: string, specialTokens: boolean): number[];
  createContext(options: object): Promise<LlamaContext>;
  dispose(): Promise<void>;
}
interface LlamaContext {
  getSequence(): { evaluate(tokens: number[], options: object): AsyncIterable<number>; clearHistory(): Promise<void> };
}

export interface LlamaAnswers {
  /** The texts as llama.cpp tokenizes them, control tokens included. */
  readonly ids: number[][];
  /** The likeliest tokens after each prompt. */
  readonly answers: number[][];
}

/** What llama.cpp answers with a GGUF file, and perhaps a GGUF adapter on it, taking the likeliest token each time. */
export async function llamaAnswers(
  modelPath: string,
  prompts: readonly (readonly number[])[],
  count: number,
  { adapter, texts = [] }: { adapter?: string; texts?: readonly string[] } = {},
): Promise<LlamaAnswers> {
  const entry = join(folder!, "node_modules/node-llama-cpp/dist/index.js");
  const { getLlama } = (await import(pathToFileURL(entry).href)) as NodeLlamaCpp;
  const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, maxThreads: 2, logLevel: "error" });
  try {
    const model = await llama.loadModel({ modelPath });
    const lora = adapter === undefined ? {} : { lora: { adapters: [{ filePath: adapter }] } };
    const context = await model.createContext({ contextSize: 512, threads: 2, ...lora });
    const sequence = context.getSequence();
    const answers: number[][] = [];
    for (const prompt of prompts) {
      await sequence.clearHistory();
      const answer: number[] = [];
      for await (const token of sequence.evaluate([...prompt], { temperature: 0, yieldEogToken: true })) {
        answer.push(token);
        if (answer.length === count) break;
      }
      answers.push(answer);
    }
    return { ids: texts.map((text) => model.tokenize(text, true)), answers };
  } finally {
    await llama.dispose();
  }
}
