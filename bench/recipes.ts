/** Varied recipes, drawn from a seed, and runs of them as a user would start them. */
import { execFile } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { Rng } from "../src/core/rng.js";
import { writeRandomModel } from "../src/models/random-model.js";
import type { RunEvent } from "../src/runs/events.js";
import { byteTokenizer } from "../src/text/tokenizer/byte-tokenizer.js";

const run = promisify(execFile);

/** A model to train, and the stages that it can be trained in. */
export interface Base {
  readonly name: string;
  readonly stages: readonly Stage[];
  /** Longest row. */
  readonly maxTokens: number;
  /** Makes it in a folder, and returns its path. */
  make(folder: string): Promise<string>;
}

export type Stage = "sft" | "pt" | "classification" | "dpo" | "grpo";
type Settings = Readonly<Record<string, unknown>>;

/** Hugging Face's config of a family, of a width C in heads of 64, with L layers and a vocabulary of V. */
type Family = (width: number, layers: number, vocab: number) => Settings;

const llamaLike = (model_type: string, architecture: string, more: Settings = {}): Family => {
  return (width, layers, vocab) => ({
    model_type,
    architectures: [architecture],
    vocab_size: vocab,
    hidden_size: width,
    intermediate_size: Math.round(width / 24) * 64,
    num_hidden_layers: layers,
    num_attention_heads: width / 64,
    num_key_value_heads: width % 192 === 0 ? width / 192 : width / 64,
    head_dim: 64,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    bos_token_id: 257,
    eos_token_id: 258,
    ...more,
  });
};
export const llama = llamaLike("llama", "LlamaForCausalLM", { tie_word_embeddings: false });
const qwen3 = llamaLike("qwen3", "Qwen3ForCausalLM", { tie_word_embeddings: true });
const gemma3 = llamaLike("gemma3_text", "Gemma3ForCausalLM", { sliding_window: 256, query_pre_attn_scalar: 64 });
const phi3 = llamaLike("phi3", "Phi3ForCausalLM", { tie_word_embeddings: false, pad_token_id: 256 });
const gpt2: Family = (width, layers, vocab) => ({
  ...{ model_type: "gpt2", architectures: ["GPT2LMHeadModel"], vocab_size: vocab, n_embd: width, n_layer: layers },
  ...{ n_head: width / 64, n_positions: 1024, bos_token_id: 257, eos_token_id: 258 },
});
const bert: Family = (width, layers, vocab) => ({
  ...{ model_type: "bert", architectures: ["BertModel"], vocab_size: vocab, hidden_size: width, num_hidden_layers: layers },
  ...{ num_attention_heads: width / 64, intermediate_size: 4 * width, max_position_embeddings: 512, type_vocab_size: 2 },
});

export function randomBase(name: string, family: Family, [width, layers, vocab]: readonly [number, number, number]): Base {
  const config = family(width, layers, vocab);
  return {
    name: `${name} ${width}×${layers}, V ${vocab}`,
    stages: config.model_type === "bert" ? ["classification"] : ["sft", "sft", "pt", "classification"],
    maxTokens: Number(config.max_position_embeddings ?? config.n_positions),
    async make(folder) {
      if (existsSync(join(folder, "config.json"))) return folder;
      await writeRandomModel(folder, config, 1);
      for (const { name, contents } of byteTokenizer().files()) writeFileSync(join(folder, name), contents);
      return folder;
    },
  };
}

export const givenBase = (name: string, path: string): Base => ({
  ...{ name, stages: ["sft", "sft", "pt"], maxTokens: 2048 },
  make: async () => path,
});

/** The settings that make a method. */
const methods: readonly Settings[] = [
  { finetuning_type: "lora" },
  { finetuning_type: "full" },
  { finetuning_type: "qlora" },
  { finetuning_type: "full", optim: "adamw_8bit" },
  { finetuning_type: "lora", lora_dropout: 0.1, use_dora: true, lora_rank: 16 },
  { finetuning_type: "freeze" },
  { finetuning_type: "full", gradient_accumulation_steps: 2 },
  { finetuning_type: "lora", pissa_init: true, pissa_iter: 2 },
  { finetuning_type: "adapter" },
  { finetuning_type: "full", gradient_accumulation_steps: 4, gradient_checkpointing: true },
  { finetuning_type: "qlora", loftq_init: true },
  { finetuning_type: "prefix-tuning" },
  { finetuning_type: "lora", gradient_accumulation_steps: 4, lora_rank: 64 },
  { finetuning_type: "p-tuning" },
];

/** Rows of a data file: how many, and the characters of a short and of a long one. */
export interface Rows {
  readonly count: number;
  readonly least: number;
  readonly most: number;
}

export interface Work {
  readonly base: Base;
  readonly settings: Settings;
  readonly stage: Stage;
  readonly train: Rows;
  readonly held: Rows | null;
}

/** `count` recipes: in each round, every base once, with a method dealt to it. */
export function drawWorks(count: number, seed: number, given: readonly Base[]): Work[] {
  const works: Work[] = [];
  for (let round = 0; works.length < count; round++) {
    const rng = Rng.for(seed, `round ${round}`);
    const one = <T>(list: readonly T[]): T => list[rng.below(list.length)]!;
    const bases = [
      ...given,
      randomBase("llama, wide", llama, [one([960, 1152]), one([2, 3, 4]), one([259, 8000])]),
      randomBase("llama, deep", llama, [one([192, 256, 384]), one([20, 28, 36]), one([259, 16000])]),
      randomBase("llama, large vocabulary", llama, [one([192, 256, 384]), one([2, 4]), one([49152, 100000])]),
      randomBase("llama, tiny", llama, [64, 2, 259]),
      randomBase("qwen3", qwen3, [one([384, 512]), one([4, 8]), one([32000, 64000])]),
      randomBase("gemma3", gemma3, [one([320, 576]), one([4, 6]), one([259, 48000])]),
      randomBase("phi3", phi3, [one([384, 768]), one([3, 6]), 32064]),
      randomBase("gpt2", gpt2, [one([384, 768]), one([4, 6]), 50257]),
      randomBase("bert", bert, [one([384, 768]), one([4, 6]), 30522]),
    ];
    const dealt = shuffled(methods, rng);
    for (const [i, base] of shuffled(bases, rng).entries()) works.push(drawWork(base, dealt[i % dealt.length]!, rng));
  }
  return works.slice(0, count);
}

function drawWork(base: Base, method: Settings, rng: Rng): Work {
  const one = <T>(list: readonly T[]): T => list[rng.below(list.length)]!;
  const stage = one(base.stages);
  const batch = one([1, 2, 4, 8]);
  const length = Math.min(base.maxTokens - 80, one([64, 128, 256, 512, 1024, 2048]), Math.max(64, 3072 / batch));
  const held = one([null, null, 1, 2]);
  const packing = stage !== "classification" && rng.float() < 0.3;
  return {
    base,
    stage,
    settings: {
      ...{
        stage,
        per_device_train_batch_size: batch,
        cutoff_len: held === null ? length : Math.min(2 * length, base.maxTokens - 80),
      },
      ...{ compute_dtype: one(["f32", "bf16"]), threads: one([1, 2]), packing, max_steps: one([2, 3]) },
      ...{ gradient_checkpointing: rng.float() < 0.25, gradient_accumulation_steps: one([1, 1, 1, 2]) },
      ...method,
    },
    train: { count: one([64, 200, 200, 20_000]), least: length / 4, most: one([1, 3]) * length },
    held: held === null ? null : { count: 12, least: (held * length) / 2, most: held * length },
  };
}

function shuffled<T>(list: readonly T[], rng: Rng): T[] {
  const left = [...list];
  return list.map(() => left.splice(rng.below(left.length), 1)[0]!);
}

const words = "the a small river runs under old stone bridges while people talk about weather and bread".split(" ");

function writeRows(path: string, { count, least, most }: Rows, stage: Stage, rng: Rng): string {
  const text = (characters: number) => {
    let made = words[rng.below(words.length)]!;
    while (made.length < characters) made += ` ${words[rng.below(words.length)]!}`;
    return made;
  };
  const row = (characters: number, i: number) => {
    if (stage === "pt") return { text: text(characters) };
    if (stage === "classification") return { text: text(characters), label: `class ${i % 3}` };
    if (stage === "dpo")
      return { instruction: text(characters / 4), chosen: text((characters * 3) / 4), rejected: text(characters / 2) };
    if (stage === "grpo") return { prompt: text(characters) };
    return { instruction: text(characters / 4), output: text((characters * 3) / 4) };
  };
  const lines = Array.from({ length: count }, (_, i) => JSON.stringify(row(rng.uniform(least, most), i)));
  writeFileSync(path, `${lines.join("\n")}\n`);
  return path;
}

/** Of a process, as the run says it. */
export interface Peaks {
  readonly predictedBytes: number;
  readonly measuredBytes: number;
}

/** Runs `attune train` in a process of its own. Throws if it fails. */
export async function train({ base, settings, stage, train, held }: Work, modelPath: string, folder: string): Promise<Peaks> {
  const rng = new Rng(1);
  mkdirSync(folder);
  const output = join(folder, "out");
  const all: Settings = {
    model_name_or_path: modelPath,
    dataset: writeRows(join(folder, "rows.jsonl"), train, stage, rng),
    ...(held !== null && { eval_dataset: writeRows(join(folder, "held-out.jsonl"), held, stage, rng) }),
    output_dir: output,
    ...settings,
  };
  const args = Object.entries(all).map(([key, value]) => `${key}=${typeof value === "object" ? JSON.stringify(value) : value}`);
  await run(process.execPath, [join(import.meta.dirname, "../../bin/attune.js"), "train", ...args], { maxBuffer: 2 ** 26 });
  const lines = readFileSync(join(output, "events.jsonl"), "utf8").trim().split("\n");
  const events = lines.map((line) => JSON.parse(line) as RunEvent);
  const start = events.find((event) => event.type === "start");
  const end = events.find((event) => event.type === "end");
  if (start?.predictedPeakBytes === undefined || end === undefined)
    throw new Error(`${base.name}: no peak was predicted, or none measured`);
  return { predictedBytes: start.predictedPeakBytes, measuredBytes: end.results.peak_memory_bytes };
}
