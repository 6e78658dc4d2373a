/**
 * Every method on the quickstart's task, as a user would run it: `node dist/bench/methods.js --model FOLDER [--only REGEX] [--rows N]`. For each,
 * what it trains, its peak memory and speed, and how many held-out sentences the tuned model answers to the letter.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Chat, type Message } from "../src/index.js";
import type { RunResults } from "../src/runs/events.js";
import { formatMarkdown } from "./table.js";

interface Method {
  readonly name: string;
  /** What the quickstart's recipe is changed by. */
  readonly settings: readonly string[];
}

const methods: readonly Method[] = [
  { name: "full", settings: ["finetuning_type=full", "learning_rate=2e-4"] },
  { name: "full, adamw_8bit", settings: ["finetuning_type=full", "learning_rate=2e-4", "optim=adamw_8bit"] },
  { name: "freeze, 2 layers", settings: ["finetuning_type=freeze", "learning_rate=5e-4"] },
  { name: "LoRA", settings: ["finetuning_type=lora"] },
  { name: "DoRA", settings: ["finetuning_type=lora", "use_dora=true"] },
  { name: "QLoRA, nf4", settings: ["finetuning_type=qlora"] },
  { name: "Adapter, Pfeiffer", settings: ["finetuning_type=adapter"] },
  { name: "Prefix-Tuning", settings: ["finetuning_type=prefix-tuning", "learning_rate=1e-2", "num_train_epochs=3"] },
  { name: "P-Tuning", settings: ["finetuning_type=p-tuning", "learning_rate=1e-3", "num_train_epochs=3"] },
];

const root = join(import.meta.dirname, "../..");
const quickstart = join(root, "examples/quickstart");

function train(method: Method, model: string, outputDir: string): RunResults {
  const settings = [
    `model_name_or_path=${model}`,
    `dataset=${join(quickstart, "train.jsonl")}`,
    `output_dir=${outputDir}`,
    "plot_loss=false",
  ];
  const args = ["train", join(quickstart, "recipe.yaml"), ...settings, ...method.settings];
  const { status, stderr } = spawnSync(process.execPath, [join(root, "bin/attune.js"), ...args], { encoding: "utf8" });
  if (status !== 0) throw new Error(`${method.name}: attune train ended with ${status}: ${stderr}`);
  return JSON.parse(readFileSync(join(outputDir, "all_results.json"), "utf8")) as RunResults;
}

/** How many of the held-out sentences are answered to the letter. */
async function examine(model: string, adapter: string | undefined, count: number): Promise<string> {
  const lines = readFileSync(join(quickstart, "heldout.jsonl"), "utf8").trim().split("\n").slice(0, count);
  const rows = lines.map((line) => (JSON.parse(line) as { messages: Message[] }).messages);
  const chat = await Chat.open(adapter === undefined ? { model } : { model, adapter });
  const answers = await chat.answerAll(
    rows.map((messages) => messages.slice(0, -1)),
    { maxNewTokens: 64 },
  );
  chat.close();
  return `${rows.filter((messages, i) => answers[i] === messages.at(-1)!.content).length} of ${rows.length}`;
}

const { values: options } = parseArgs({
  options: { model: { type: "string" }, only: { type: "string", default: "" }, rows: { type: "string", default: "50" } },
});
if (options.model === undefined) throw new Error("--model: expected the folder of a model, or its name on the hub");

const headings = ["method", "trains", "of all", "peak RSS", "tokens/s", "loss", "held-out, to the letter"];
const table: string[][] = [];
for (const method of methods.filter(({ name }) => new RegExp(options.only, "i").test(name))) {
  const outputDir = mkdtempSync(join(tmpdir(), "attune-methods-"));
  try {
    const results = train(method, options.model, outputDir);
    const isAdapter = existsSync(join(outputDir, "adapter_config.json"));
    const [base, adapter] = isAdapter ? [options.model, outputDir] : [outputDir, undefined];
    const score = await examine(base, adapter, Number(options.rows));
    table.push([
      method.name,
      `${(results.trainable_params / 1e3).toFixed(0)} k`,
      `${((100 * results.trainable_params) / results.all_params).toFixed(2)} %`,
      `${(results.peak_memory_bytes / 1e9).toFixed(2)} GB`,
      results.tokens_per_second.toFixed(0),
      results.train_loss.toFixed(3),
      score,
    ]);
    console.error(table.at(-1)!.join("  "));
  } finally {
    rmSync(outputDir, { recursive: true, force: true });
  }
}
console.log(formatMarkdown(headings, table));
