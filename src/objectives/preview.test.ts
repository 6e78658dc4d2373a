import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after } from "node:test";
import { ConfigError, DataError } from "../errors.js";
import { type PreviewOptions, previewData } from "./preview.js";

const folder = await mkdtemp(join(tmpdir(), "attune-preview-"));
after(() => rm(folder, { recursive: true }));

async function preview(rows: readonly object[], options: Partial<PreviewOptions> = {}) {
  await writeFile(join(folder, "rows.json"), JSON.stringify(rows));
  return previewData({ dataset: ["rows.json"], datasetDir: folder, cutoffLen: 2048, count: 5, ...options });
}

const chat = (system: string, answer: string) =>
  `${system && `<|im_start|>system\n${system}<|im_end|>\n`}<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n[${answer}<|im_end|>]\n`;

/** The rows as text, what is learned in brackets. */
async function shown(rows: readonly object[], options: Partial<PreviewOptions> = {}) {
  const { rows: read, stage } = await preview(rows, options);
  const texts = read.map(({ pieces, label }) => [
    pieces.map(({ text, supervised }) => (supervised ? `[${text}]` : text)).join(""),
    ...(label === undefined ? [] : [label]),
  ]);
  return { stage, texts };
}

test("what rows are for is found out from their columns, and each is shown as training reads it", async () => {
  assert.deepEqual(await shown([{ question: "Q", answer: "A" }]), { stage: "sft", texts: [[chat("", "A")]] });
  assert.equal((await shown([{ text: "Once." }])).stage, "pt");
  const pt = (await shown([{ text: "Once." }])).texts[0]![0]!;
  assert.match(pt, /\[Once\./);
  assert.deepEqual(await shown([{ text: "good", label: 1 }]), { stage: "classification", texts: [["good", "1"]] });
  assert.equal((await shown([{ text: "good", label: true }])).stage, "classification");
  assert.equal((await shown([{ instruction: "Q", output: "A", text: "Q A" }])).stage, "sft");
});

/** Of judged answers nothing is read behind the token that ends the turn. */
const answered = (system: string, answer: string) => chat(system, answer).trimEnd();

test("both answers of every form of preference data are shown, with what was thought of them", async () => {
  const user = { role: "user", content: "Q" };
  const says = (content: string) => ({ role: "assistant", content });
  const pairs: object[] = [
    { instruction: "Q", input: "", system: "S", chosen: "A", rejected: "B" }, // LLaMA-Factory, Alpaca
    {
      conversations: [{ from: "human", value: "Q" }],
      system: "S",
      chosen: { from: "gpt", value: "A" },
      rejected: { from: "gpt", value: "B" },
    },
    { prompt: "Q", system: "S", chosen: "A", rejected: "B" }, // TRL
    { prompt: [user], system: "S", chosen: [says("A")], rejected: [says("B")] },
    { system: "S", chosen: [user, says("A")], rejected: [user, says("B")] },
    { messages: [user], system: "S", chosen: says("A"), rejected: says("B") },
  ];
  const both = [
    [answered("S", "A"), "chosen"],
    [answered("S", "B"), "rejected"],
  ];
  for (const row of pairs) assert.deepEqual(await shown([row]), { stage: "dpo", texts: both }, JSON.stringify(row));
  const judged: object[] = [
    { instruction: "Q", output: "A", kto_tag: true },
    { messages: [user, says("A")], label: true },
    { prompt: "Q", completion: "A", label: true },
  ];
  for (const row of judged) assert.deepEqual(await shown([row]), { stage: "kto", texts: [[answered("", "A"), "good"]] });
});

test("an entry of dataset_info.json names the columns of preference data", async () => {
  const columns = { prompt: "q", chosen: "better", rejected: "worse" };
  await writeFile(
    join(folder, "dataset_info.json"),
    JSON.stringify({ pairs: { file_name: "rows.json", ranking: true, columns } }),
  );
  const { stage, texts } = await shown([{ q: "Q", better: "A", worse: "B" }], { dataset: ["pairs"] });
  await rm(join(folder, "dataset_info.json"));
  assert.equal(stage, "dpo");
  assert.deepEqual(texts, [
    [answered("", "A"), "chosen"],
    [answered("", "B"), "rejected"],
  ]);
});

test("lengths, classes and what is left out are counted", async () => {
  const texts = Array.from({ length: 100 }, (_, i) => ({ text: "x".repeat(i + 1), label: i < 70 ? "short" : "long", id: i }));
  const { tokens, labels, examples, supervised, notices } = await preview(texts, { cutoffLen: 90, count: 1 });
  assert.deepEqual(tokens, { p50: 50, p95: 95, max: 100, longer: 10 });
  assert.deepEqual(labels, [
    ["short", 70],
    ["long", 30],
  ]);
  assert.deepEqual([examples, supervised], [100, null]);
  assert.match(notices.join("\n"), /not used.*"id" \(100\)/);
  const pairs = await preview([
    { prompt: "Q", chosen: "A", rejected: "B", id: 1 },
    { prompt: "Q", chosen: 3, rejected: "B" },
  ]);
  assert.deepEqual(pairs.labels, [
    ["chosen", 1],
    ["rejected", 1],
  ]);
  assert.match(pairs.notices.join("\n"), /"id" \(1\)/);
  assert.match(pairs.notices.join("\n"), /1 of 2 rows are left out.*"chosen" has to be text, got the number 3/);
  assert.ok(pairs.supervised!.tokens > 0 && pairs.supervised!.tokens < pairs.supervised!.of);
});

test("a stage shows its own rows: both answers of pairs, answers one by one, or prompts alone", async () => {
  const upToEnd = (answer: string) => chat("", answer).trimEnd();
  const row = { prompt: "Q", chosen: "A", rejected: "B" };
  for (const stage of ["dpo", "rm"])
    assert.deepEqual(await shown([row, { ...row, rejected: "A" }], { stage }), {
      stage,
      texts: [
        [upToEnd("A"), "chosen"],
        [upToEnd("B"), "rejected"],
      ],
    });
  const single = [
    [upToEnd("A"), "good"],
    [upToEnd("B"), "bad"],
  ];
  for (const stage of ["kto", "bco"]) assert.deepEqual(await shown([row], { stage }), { stage, texts: single });
  const { texts } = await shown([{ prompt: "Q" }], { stage: "grpo" });
  assert.deepEqual(texts, [[upToEnd("").replace("[<|im_end|>]", "")]]);
});

test("a stage can be named, and what fits none says why", async () => {
  assert.equal((await preview([{ text: "a", label: 1 }], { stage: "pt" })).stage, "pt");
  await assert.rejects(preview([{ text: "a" }], { stage: "dpoo" }), (error) => error instanceof ConfigError);
  await assert.rejects(preview([{ foo: 1 }]), (error) => error instanceof DataError && /no known columns/.test(error.message));
});
