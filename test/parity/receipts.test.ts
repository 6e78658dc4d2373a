/**
 * A receipt's verdict against answers counted where the file is read: by llama.cpp (ATTUNE_LLAMA) and transformers (ATTUNE_PEERS). The adapter is trained for
 * 12 weak steps, so that what it learnt is smaller than what coarse types round away.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after, before } from "node:test";
import { loadDataset, tokenizeDataset } from "../../src/data/dataset.js";
import type { NumberType } from "../../src/export/choices.js";
import { exportModel } from "../../src/export/export.js";
import { isRight, type Question, questionsOf } from "../../src/export/questions.js";
import type { Receipt } from "../../src/export/receipt.js";
import { train } from "../../src/index.js";
import { openModel } from "../../src/io/open-model.js";
import { loadTokenizer } from "../../src/text/load-tokenizer.js";
import { chooseTemplate } from "../../src/text/templates.js";
import type { Tokenizer } from "../../src/text/tokenizer/tokenizer.js";
import { llamaAnswers, skipWithoutLlama } from "../support/llama.js";
import { runPython, skipWithoutPeers, smolLM2Folder } from "../support/peers.js";

const examples = join(import.meta.dirname, "../../../examples/quickstart");
const rows = 24;
const skip = skipWithoutPeers || skipWithoutLlama;

let folder: string;
let adapter: string;
let tokenizer: Tokenizer;
let questions: Question[];

before(async () => {
  if (skip) return;
  folder = mkdtempSync(join(tmpdir(), "attune-receipts-"));
  adapter = join(folder, "weak");
  await train({
    ...{ model_name_or_path: smolLM2Folder(), dataset: [join(examples, "train.jsonl")], output_dir: adapter },
    eval_dataset: [join(examples, "heldout.jsonl")],
    ...{ eval_strategy: "no", save_strategy: "no", plot_loss: false, packing: true, cutoff_len: 512, max_steps: 12 },
    ...{ learning_rate: 7e-4, lr_scheduler_type: "cosine", warmup_ratio: 0.05 },
  });
  tokenizer = await loadTokenizer(await openModel(smolLM2Folder()));
  const chat = { tokenizer, ...chooseTemplate(tokenizer) };
  const { conversations } = await loadDataset({ dataset: [join(examples, "heldout.jsonl")] });
  questions = questionsOf((await tokenizeDataset(conversations, chat, { cutoffLen: 512 })).examples, tokenizer, rows);
});

after(() => folder && rmSync(folder, { recursive: true }));

async function receiptOf(to: "hf" | "gguf", type: NumberType): Promise<{ out: string; receipt: Receipt }> {
  const out = join(folder, `${to}-${type}`);
  const options = { model: smolLM2Folder(), adapter, to, type, out, checkRows: rows, force: true, maxDrift: 1e9 };
  return { out, receipt: (await exportModel(options)).receipt! };
}

/** How many answers are right, up to the token that ends them. */
function rightIn(answers: readonly (readonly number[])[]): number {
  return questions.filter((question, i) => {
    const ids = answers[i]!;
    const end = ids.findIndex((id) => tokenizer.stopIds.has(id));
    return isRight(question, tokenizer.decode(Int32Array.from(end < 0 ? ids : ids.slice(0, end))));
  }).length;
}

/** The receipt's count is the reader's but for answers that hang by a hair, and its verdict is what that count deserves. */
function assertAgrees({ before, readings }: Receipt, counted: number, t: { diagnostic(message: string): void }): void {
  const [{ answers, verdict }] = readings as [Receipt["readings"][number]];
  t.diagnostic(
    `${before.right} right before; the receipt counts ${answers!.right} and says ${verdict}; the reader counts ${counted}`,
  );
  assert.equal(readings.length, 2);
  assert.ok(Math.abs(answers!.right! - counted) <= 2, `the receipt says ${answers!.right}, the reader ${counted}`);
  const lost = before.right! - counted;
  if (verdict === "refuse") assert.ok(lost >= 2, `refused, and the reader lost ${lost}`);
  if (verdict === "pass") assert.ok(lost <= 2, `passed, and the reader lost ${lost}`);
}

const prompts = () => questions.map(({ prompt }) => [...prompt]);
const mostTokens = 60;

for (const type of ["bf16", "q4_k_m"] as const)
  test(`a receipt of a GGUF file in ${type} agrees with llama.cpp`, { skip, timeout: 1_200_000 }, async (t) => {
    const { out, receipt } = await receiptOf("gguf", type);
    const { answers } = await llamaAnswers(join(out, "model.gguf"), prompts(), mostTokens);
    assertAgrees(receipt, rightIn(answers), t);
  });

test("a receipt of a Hugging Face folder in bf16 agrees with transformers, in the type that it chooses", {
  skip,
  timeout: 1_200_000,
}, async (t) => {
  const { out, receipt } = await receiptOf("hf", "bf16");
  const asked = join(folder, "prompts.json");
  writeFileSync(asked, JSON.stringify({ prompts: prompts(), tokens: mostTokens }));
  const { dtype, answers } = JSON.parse(runPython("answers.py", [out, asked])) as { dtype: string; answers: number[][] };
  assert.equal(dtype, "torch.bfloat16");
  assertAgrees(receipt, rightIn(answers), t);
});
