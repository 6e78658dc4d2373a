import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after } from "node:test";
import { renderPrompt } from "../text/supervised.js";
import { chooseTemplate, templateNames } from "../text/templates.js";
import { byteLevel, chatOf, sentencepiece, templates } from "../text/testing/byte-level.js";
import { cutLengths, readPairs, readUnpaired, type Truncation, truncations } from "./preference-rows.js";
import { byteChat } from "./preview.js";

const folder = mkdtempSync(join(tmpdir(), "attune-pairs-"));
after(() => rmSync(folder, { recursive: true }));

interface Options {
  readonly cutoffLen?: number;
  readonly truncation?: Truncation;
  readonly onBadRow?: "error" | "skip";
  readonly template?: string;
  readonly dataset?: string;
}

function sourceOf(rows: readonly object[], { cutoffLen = 4096, onBadRow = "error", template }: Options) {
  writeFileSync(join(folder, "rows.json"), JSON.stringify(rows));
  const { tokenizer, template: chatMl } = byteChat();
  const notices: string[] = [];
  const chat = { tokenizer, template: template === undefined ? chatMl : chooseTemplate(tokenizer, { name: template }).template };
  const source = {
    files: { datasetDir: folder, onBadRow },
    tokenize: { cutoffLen, onBadRow },
    chat: () => chat,
    warn: (message: string) => notices.push(message),
  };
  const text = (ids: Int32Array) => tokenizer.decode(ids, { special: true });
  return { source, notices, text, tokenizer };
}

async function pairs(rows: readonly object[], options: Options = {}) {
  const { source, notices, text, tokenizer } = sourceOf(rows, options);
  const read = await readPairs([options.dataset ?? "rows.json"], source, options.truncation ?? "infer_seqlen");
  const texts = read.map(({ prompt, chosen, rejected }) => [text(prompt), text(chosen), text(rejected)]);
  return { read, texts, notices: notices.join("\n"), tokenizer, chat: source.chat() };
}

async function unpaired(rows: readonly object[], options: Options = {}) {
  const { source, notices, text } = sourceOf(rows, options);
  const read = await readUnpaired([options.dataset ?? "rows.json"], source, options.truncation ?? "infer_seqlen");
  return {
    read,
    texts: read.map(({ prompt, answer, isGood }) => [text(prompt), text(answer), isGood]),
    notices: notices.join("\n"),
  };
}

const user = (content: string) => ({ role: "user", content });
const says = (content: string) => ({ role: "assistant", content });
const asked = (...turns: string[]) =>
  turns.map((turn, i) => `<|im_start|>${i % 2 === 0 ? "user" : "assistant"}\n${turn}<|im_end|>\n`).join("");
const prompt = `${asked("Q")}<|im_start|>assistant\n`;
const both = [prompt, "A<|im_end|>", "B<|im_end|>"];

const forms: Readonly<Record<string, object>> = {
  "LLaMA-Factory, Alpaca": { instruction: "Q", input: "", chosen: "A", rejected: "B" },
  "LLaMA-Factory, ShareGPT": {
    conversations: [{ from: "human", value: "Q" }],
    chosen: { from: "gpt", value: "A" },
    rejected: { from: "gpt", value: "B" },
  },
  "TRL, standard": { prompt: "Q", chosen: "A", rejected: "B" },
  "TRL, conversational": { prompt: [user("Q")], chosen: [says("A")], rejected: [says("B")] },
  "TRL, conversational, implicit prompt": { chosen: [user("Q"), says("A")], rejected: [user("Q"), says("B")] },
  "a prompt in words beside whole conversations": {
    prompt: "Q",
    chosen: [user("Q"), says("A")],
    rejected: [user("Q"), says("B")],
  },
  "TRL, standard, implicit prompt": { chosen: "Q A", rejected: "Q B" },
  "HH-RLHF": { chosen: "\n\nHuman: Q\n\nAssistant: A", rejected: "\n\nHuman: Q\n\nAssistant: B" },
  OpenAI: { input: { messages: [user("Q")], tools: [] }, preferred_output: [says("A")], non_preferred_output: [says("B")] },
};

for (const [name, row] of Object.entries(forms))
  test(`pairs are read in the form of ${name}, and feed what learns from single answers`, async () => {
    assert.deepEqual((await pairs([row])).texts, [both]);
    assert.deepEqual((await unpaired([row])).texts, [
      [prompt, both[1], true],
      [prompt, both[2], false],
    ]);
  });

test("answers that are good or bad by themselves are read, and are no pairs", async () => {
  const rows = [
    { instruction: "Q", output: "A", kto_tag: true },
    { messages: [user("Q"), says("A")], label: false },
    { prompt: "Q", completion: "A", label: true },
    { prompt: [user("Q")], completion: [says("A")], label: false },
  ];
  assert.deepEqual(
    (await unpaired(rows)).texts,
    [true, false, true, false].map((isGood) => [prompt, "A<|im_end|>", isGood]),
  );
  await assert.rejects(pairs(rows), { code: "DATA", message: /rows.json, row 1: the row has one answer.*kto and bco/ });
});

test("an entry of dataset_info.json names columns of both kinds", async () => {
  const entries = {
    ranked: { file_name: "rows.json", ranking: true, columns: { prompt: "q", chosen: "better", rejected: "worse" } },
    tagged: {
      file_name: "rows.json",
      formatting: "sharegpt",
      columns: { messages: "talk", kto_tag: "liked" },
      tags: { role_tag: "role", content_tag: "content", user_tag: "user", assistant_tag: "assistant" },
    },
  };
  writeFileSync(join(folder, "dataset_info.json"), JSON.stringify(entries));
  try {
    assert.deepEqual((await pairs([{ q: "Q", better: "A", worse: "B" }], { dataset: "ranked" })).texts, [both]);
    const row = { talk: [user("Q"), says("A")], liked: false };
    assert.deepEqual((await unpaired([row], { dataset: "tagged" })).texts, [[prompt, "A<|im_end|>", false]]);
  } finally {
    rmSync(join(folder, "dataset_info.json"));
  }
});

test("rows in which nothing is preferred are counted and listed, and never trained", async () => {
  const good = { prompt: "Q", chosen: "A", rejected: "B" };
  const rows = [
    good,
    { ...good, rejected: "A" },
    { ...good, chosen: "B" },
    { ...good, chosen: null },
    { prompt: "Q", chosen: "A" },
    { ...good, rejected: "  " },
    { prompt: [user("Q")], chosen: [says("")], rejected: [says("B")] },
    { ...good, label: "tie" },
    { ...good, winner: "tie (bothbad)" },
    { ...good, label: "a" },
  ];
  const { texts, notices } = await pairs(rows);
  assert.deepEqual(texts, [both, both]);
  assert.match(notices, /8 of 10 rows are left out, as nothing can be learned/);
  assert.match(notices, /2 with equal answers \(rows.json, row 2, rows.json, row 3\)/);
  assert.match(notices, /1 without a "chosen" answer \(rows.json, row 4\)/);
  assert.match(notices, /2 without a "rejected" answer \(rows.json, row 5, rows.json, row 6\)/);
  assert.match(notices, /1 with an empty answer \(rows.json, row 7\)/);
  assert.match(notices, /1 that are ties \(rows.json, row 8\)/);
  assert.match(notices, /1 with two bad answers \(rows.json, row 9\)/);
  const single = await unpaired(rows.slice(7));
  assert.deepEqual(
    single.texts.map(([, , isGood]) => isGood),
    [false, false, true, false],
  );
  const empty = await unpaired([
    { prompt: "Q", completion: "", label: true },
    { messages: [user("Q"), says("A"), user("R"), says(" ")], label: true },
    { prompt: "Q", completion: "A", label: true },
  ]);
  assert.equal(empty.texts.length, 1);
  assert.match(empty.notices, /2 with an empty answer/);
  await assert.rejects(pairs([{ ...good, rejected: "A" }]), { code: "DATA", message: /No row is left.*1 with equal answers/ });
});

test("both answers follow the same messages, or the row is bad", async () => {
  const row = { chosen: [user("Q"), says("A")], rejected: [user("R"), says("B")] };
  await assert.rejects(pairs([row]), {
    code: "DATA",
    message: /row 1: the conversations of "chosen" and "rejected" part at message 1 of 2/,
  });
  await assert.rejects(pairs([{ prompt: "Q" }]), { message: /expected judged answers.*The row has prompt/ });
  await assert.rejects(pairs([{ chosen: "yes", rejected: "no" }]), { message: /begin differently, and there is no question/ });
  await assert.rejects(pairs([{ prompt: "Q", chosen: "A", rejected: "B", margin: "much" }]), {
    message: /"margin" has to be a number/,
  });
  const turns = { messages: [user("Q"), says("A")], chosen: [user("B")], rejected: [user("C")] };
  await assert.rejects(pairs([turns]), { message: /the last message is the user's/ });
});

test("a margin is kept, columns that nobody reads are named once", async () => {
  const { read, notices } = await pairs([
    { prompt: "Q", chosen: "A", rejected: "B", margin: 1.5, id: 7 },
    { prompt: "Q", chosen: "A", rejected: "B", margin: null },
  ]);
  assert.deepEqual([read[0]!.margin, "margin" in read[1]!], [1.5, false]);
  assert.match(notices, /not used.*"id" \(1\)/);
});

test("an implicit prompt is split at a message or at a blank, never inside a word", async () => {
  const { texts } = await pairs([{ chosen: "The sky is blue.", rejected: "The sky is black." }]);
  assert.deepEqual(texts, [[`${asked("The sky is")}<|im_start|>assistant\n`, "blue.<|im_end|>", "black.<|im_end|>"]]);
  const turns = [user("Q"), says("A"), user("<|assistant|>R")];
  const long = await pairs([{ chosen: [...turns, says("Bx")], rejected: [...turns, says("By")] }]);
  assert.deepEqual(long.texts, [[`${asked("Q", "A", "<|assistant|>R")}<|im_start|>assistant\n`, "Bx<|im_end|>", "By<|im_end|>"]]);
});

for (const template of templateNames)
  test(`template ${template}: one prompt for both answers, the server's own; one token that ends each`, async () => {
    const rows = Array.from({ length: 20 }, (_, i) => ({
      prompt: [user(`Q${"x".repeat(i)}`), says(`A${i}`), user("and?")],
      chosen: [says(`yes ${"!".repeat(i)}`)],
      rejected: [says(`no${i}`)],
    }));
    const read = await pairs(rows, { template });
    const { tokenizer, chat } = read;
    const stops = (ids: Int32Array) => [...ids].filter((id) => tokenizer.stopIds.has(id)).length;
    for (const [i, row] of read.read.entries()) {
      assert.deepEqual([...row.prompt], [...renderPrompt(chat, { messages: rows[i]!.prompt })]);
      assert.ok(row.prompt[0] !== tokenizer.bosId || row.prompt[1] !== tokenizer.bosId);
    }
    for (const [i, { chosen, rejected }] of read.read.entries())
      for (const [answer, words] of [
        [chosen, rows[i]!.chosen[0]!.content],
        [rejected, rows[i]!.rejected[0]!.content],
      ] as const) {
        const text = tokenizer.decode(answer, { special: true });
        // Qwen 3 writes empty thoughts before an answer without any.
        assert.ok(text.replace("<think>\n\n</think>", "").trimStart().startsWith(words), text);
        assert.ok(stops(answer) <= 1);
      }
  });

for (const [kind, tokenizer] of Object.entries({ byteLevel, sentencepiece }))
  for (const template of Object.keys(templates))
    test(`${kind}, ${template}: prompts of 200 pairs are the server's, whatever answers begin with; nothing begins or ends twice`, async () => {
      const chat = chatOf(tokenizer, template);
      const begins = ["Sure", " sure", "\nsure", "\n\n  sure", "🙂", "'s", "1", "ça", "世界", "<s>"];
      const rows = Array.from({ length: 200 }, (_, i) => ({
        prompt: [user(`Hello ${i}${" ".repeat(i % 3)}`), ...(i % 2 === 0 ? [] : [says("Hi"), user("and\n")])],
        chosen: [says(`${begins[i % 10]} ${i}`)],
        rejected: [says(`${begins[(i * 7 + 3) % 10]} no ${i}`)],
      }));
      const { source } = sourceOf(rows, {});
      const read = await readPairs(["rows.json"], { ...source, chat: () => chat }, "infer_seqlen");
      assert.equal(read.length, rows.length);
      for (const [i, { prompt, chosen, rejected }] of read.entries()) {
        const served = renderPrompt(chat, { messages: rows[i]!.prompt });
        const shared = tokenizer.prefixesSpace ? served.subarray(0, prompt.length) : served;
        assert.deepEqual([...prompt], [...shared], `row ${i}`);
        assert.ok(served.length - prompt.length <= 1, "at most the last token of a prompt is joined with the answer");
        const whole = (answer: Int32Array) => [...prompt, ...answer];
        for (const answer of [chosen, rejected]) {
          assert.ok(whole(answer)[0] !== tokenizer.bosId || whole(answer)[1] !== tokenizer.bosId);
          const ends = [...answer].flatMap((id, t) => (tokenizer.stopIds.has(id) ? [t] : []));
          assert.deepEqual(ends, [answer.length - 1]);
        }
      }
    });

const sum = (numbers: readonly number[]) => numbers.reduce((a, b) => a + b, 0);

test("infer_seqlen is LLaMA-Factory's rule, keep_start TRL's", () => {
  /** LLaMA-Factory, data/processor/processor_utils.py, line by line. */
  const inferSeqlen = (source: number, target: number, cutoff: number) => {
    let most: number;
    if (target * 2 < cutoff) most = cutoff;
    else if (source * 2 < cutoff) most = cutoff - source;
    else most = Math.trunc(cutoff * (target / (source + target)));
    const newTarget = Math.min(most, target);
    return { prompt: Math.min(Math.max(cutoff - newTarget, 0), source), answer: newTarget };
  };
  for (let p = 1; p <= 30; p++)
    for (let a = 1; a <= 30; a++)
      for (let c = 1; c <= 30; c++) {
        assert.deepEqual(cutLengths(p, a, c, "infer_seqlen"), inferSeqlen(p, a, c));
        const kept = Math.min(p + a, c);
        assert.equal(sum(Object.values(cutLengths(p, a, c, "keep_start"))), kept);
        assert.equal(cutLengths(p, a, c, "keep_start").prompt, Math.min(p, c));
      }
});

for (const truncation of truncations)
  test(`${truncation}: whatever the lengths, a pair keeps a token of the prompt and of both answers, or is counted`, async () => {
    const rows = [];
    for (const p of [1, 2, 5, 11, 24])
      for (const c of [1, 3, 7, 24])
        for (const r of [1, 2, 6, 24]) rows.push({ prompt: "p".repeat(p), chosen: "c".repeat(c), rejected: "r".repeat(r) });
    const whole = await pairs(rows);
    let cutSome = false;
    for (const cutoffLen of [24, 30, 40, 46, 50, 60, 80]) {
      let read: typeof whole;
      try {
        read = await pairs(rows, { cutoffLen, truncation });
      } catch (error) {
        assert.match((error as Error).message, /No row is left to train on.*leaves no token of an answer/);
        continue;
      }
      const left = Number(/(\d+) of \d+ rows are left out/.exec(read.notices)?.[1] ?? 0);
      assert.equal(read.read.length + left, rows.length);
      const byPlace = new Map(whole.read.map((row) => [row.where, row]));
      for (const { where, prompt, chosen, rejected } of read.read) {
        const before = byPlace.get(where)!;
        for (const [part, all] of [
          [prompt, before.prompt],
          [chosen, before.chosen],
          [rejected, before.rejected],
        ] as const) {
          assert.ok(part.length > 0);
          assert.deepEqual([...part], [...all.subarray(0, part.length)]);
          if (part.length < all.length) cutSome = true;
        }
        assert.ok(prompt.length + Math.max(chosen.length, rejected.length) <= cutoffLen);
      }
    }
    assert.ok(cutSome);
  });
