import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import fc from "fast-check";
import { temporaryFolder } from "../io/testing/folders.js";
import { renderPrompt } from "../text/supervised.js";
import { byteChat } from "./preview.js";
import { loadPrompts, type Prompt, prompts } from "./prompt-rows.js";
import { Fields, RowFault, Tally } from "./row-format.js";
import { anyRow } from "./testing/datasets.js";

function read(row: object, entry?: Record<string, unknown>): { said: Omit<Prompt, "where">; notices: string[] } {
  const tally = new Tally();
  const fields = new Fields(JSON.parse(JSON.stringify(row)), "columns");
  const said = prompts.read(fields, entry && prompts.layoutOfEntry(entry, "info"), tally);
  tally.done(fields);
  return { said: JSON.parse(JSON.stringify(said)), notices: tally.notices() };
}

const user = { role: "user", content: "Q" };
const system = { role: "system", content: "S" };
const good = { role: "assistant", content: "A" };
const bad = { role: "assistant", content: "B" };
const human = { from: "human", value: "Q" };
const gpt = { from: "gpt", value: "A" };

const kinds: readonly (readonly [
  name: string,
  row: object,
  messages: object[],
  columns: object,
  entry?: Record<string, unknown>,
])[] = [
  ["TRL's prompt, as text", { prompt: "Q", level: 3 }, [user], { level: 3 }],
  ["TRL's prompt, as messages", { prompt: [system, user], answer: 42 }, [system, user], { answer: 42 }],
  ["a question alone", { question: "Q", gold: null }, [user], { gold: null }],
  ["messages that end with the user's", { messages: [system, user] }, [system, user], {}],
  ["a row of sft", { instruction: "Q", output: "A" }, [user], { output: "A", answer: "A" }],
  [
    "with more of a question",
    { instruction: "Q", input: "x", output: "A", system: "S" },
    [system, { role: "user", content: "Q\nx" }],
    { output: "A", answer: "A" },
  ],
  ["with its own answer", { problem: "Q", solution: "long", answer: "7" }, [user], { solution: "long", answer: "7" }],
  ["TRL's completion", { prompt: [user], completion: [good] }, [user], { completion: [good], answer: "A" }],
  ["a conversation", { messages: [user, bad, user, good], id: 5 }, [user, bad, user], { id: 5, answer: "A" }],
  ["ShareGPT's", { conversations: [human, gpt] }, [user], { answer: "A" }],
  ["a pair", { prompt: "Q", chosen: "A", rejected: "B" }, [user], { chosen: "A", rejected: "B" }],
  [
    "a pair without a prompt",
    { chosen: [system, user, good], rejected: [system, user, bad] },
    [system, user],
    { chosen: [system, user, good], rejected: [system, user, bad] },
  ],
  [
    "a pair of whole conversations beside their prompt",
    { prompt: "Q", chosen: [system, user, good], rejected: [system, user, bad], score: 2 },
    [system, user],
    { chosen: [system, user, good], rejected: [system, user, bad], score: 2 },
  ],
  [
    "HH-RLHF's texts",
    { chosen: "\n\nHuman: Q\n\nAssistant: A", rejected: "\n\nHuman: Q\n\nAssistant: B" },
    [user],
    { chosen: "\n\nHuman: Q\n\nAssistant: A", rejected: "\n\nHuman: Q\n\nAssistant: B" },
  ],
  ["a judged answer", { prompt: "Q", completion: "B", label: false }, [user], { completion: "B", label: false }],
  ["a judged conversation", { messages: [user, bad], label: false }, [user], { completion: "B", label: false }],
  [
    "OpenAI's",
    { input: { messages: [user] }, preferred_output: [good], non_preferred_output: [bad] },
    [user],
    { preferred_output: [good], non_preferred_output: [bad] },
  ],
  [
    "named columns",
    { q: "Q", a: "A", extra: [1] },
    [user],
    { a: "A", extra: [1], answer: "A" },
    { columns: { prompt: "q", response: "a" } },
  ],
  ["named columns without an answer", { q: "Q" }, [user], {}, { columns: { prompt: "q" } }],
  [
    "LLaMA-Factory's ranking",
    { conversations: [human], chosen: gpt, rejected: gpt },
    [user],
    { chosen: gpt, rejected: gpt },
    { formatting: "sharegpt", ranking: true, columns: { messages: "conversations", chosen: "chosen", rejected: "rejected" } },
  ],
  [
    "LLaMA-Factory's KTO",
    { messages: [user, bad], good: false },
    [user],
    { completion: "B", good: false },
    { formatting: "openai", columns: { messages: "messages", kto_tag: "good" } },
  ],
];

for (const [name, row, messages, columns, entry] of kinds)
  test(`prompts of ${name}`, () => {
    const { said, notices } = read(row, entry);
    assert.deepEqual({ messages: said.messages, columns: said.columns }, { messages, columns });
    assert.deepEqual(notices, []);
  });

test("rows without a prompt say what is missing", () => {
  for (const [row, reason] of [
    [{ text: "x" }, /there is no prompt.*The row has "text"/],
    [{ chosen: "A", rejected: "B" }, /both answers are texts that begin differently, and there is no question/],
    [{ chosen: "Q A", rejected: "Q A" }, /where the prompt ends does not show in rows with equal answers/],
    [{ chosen: [good], rejected: [bad] }, /nothing stands before the answer/],
    [{ messages: [good] }, /nothing stands before the answer/],
    [{ prompt: [user, good] }, /ends with an assistant's message/],
    [{ prompt: "Q", messages: [] }, /"messages" has to be a list of messages, got an empty list/],
    [{ prompt: "" }, /are empty: there is no question/],
    [{ prompt: 5 }, /"prompt" has to be text, got the number 5/],
    [{ question: "Q", choices: ["a", "b"] }, /"choices", which cannot be learned from: write the choices into the question/],
  ] as const)
    assert.throws(
      () => read(row),
      (error: Error) => error instanceof RowFault && reason.test(error.message),
      JSON.stringify(row),
    );
});

test("every column of a row is part of its prompt, kept for rewards, or told", () => {
  fc.assert(
    fc.property(anyRow, (row) => {
      const tally = new Tally();
      const fields = new Fields(row as Record<string, unknown>, "columns");
      let said: Omit<Prompt, "where">;
      try {
        said = prompts.read(fields, undefined, tally);
      } catch (error) {
        assert.ok(error instanceof RowFault, String(error));
        return;
      }
      assert.deepEqual(
        [...fields.unread()].filter(({ kind }) => kind === "columns"),
        [],
      );
      assert.notEqual(said.messages.at(-1)!.role, "assistant");
      for (const [key, value] of Object.entries(said.columns)) if (key in row) assert.equal(value, (row as never)[key]);
    }),
    { numRuns: 500 },
  );
});

test("an answer in the messages beside another column `answer` is told", () => {
  const { said, notices } = read({ messages: [user, good], answer: "other" });
  assert.deepEqual(said.columns, { answer: "other" });
  assert.deepEqual(notices, [
    '1 rows have a column "answer", which is what rewards see; the answer in their messages is not used.',
  ]);
});

test("prompts become the tokens after which the model answers; longer ones are left out and counted", async (t) => {
  const file = join(temporaryFolder(t), "prompts.jsonl");
  const rows = ["short", "x".repeat(500), "also short", "y".repeat(600)].map((prompt) => ({ prompt, kind: "k" }));
  writeFileSync(file, rows.map((row) => JSON.stringify(row)).join("\n"));
  const chat = byteChat();
  const told: string[] = [];
  const options = { files: {}, chat, cutoffLen: 100, warn: (message: string) => told.push(message) };
  const found = await loadPrompts([file], options);
  assert.deepEqual(
    found.map(({ where }) => where),
    ["prompts.jsonl:1", "prompts.jsonl:3"],
  );
  for (const { prompt, messages, tokens, columns } of found) {
    assert.deepEqual(prompt, renderPrompt(chat, { messages }));
    assert.equal(tokens, prompt.length);
    assert.deepEqual(columns, { kind: "k" });
  }
  assert.equal(told.length, 1);
  assert.match(
    told[0]!,
    /^2 of 4 rows are left out, the first prompts\.jsonl:2: the prompt has \d+ tokens, more than cutoff_len = 100\.$/,
  );
  await assert.rejects(
    loadPrompts([file], { ...options, cutoffLen: 10 }),
    /No row is left to train on\. prompts\.jsonl:1: .* Raise cutoff_len\./,
  );
});

test("a row that cannot be used stops the run, or is left out and told", async (t) => {
  const file = join(temporaryFolder(t), "prompts.jsonl");
  writeFileSync(file, '{"prompt": "Q"}\n{"text": "no prompt"}');
  const told: string[] = [];
  const options = { chat: byteChat(), cutoffLen: 100, warn: (message: string) => told.push(message) };
  await assert.rejects(loadPrompts([file], { ...options, files: {} }), {
    code: "DATA",
    message: /prompts\.jsonl:2: there is no prompt/,
  });
  const found = await loadPrompts([file], { ...options, files: { onBadRow: "skip" } });
  assert.equal(found.length, 1);
  assert.match(told.join("\n"), /1 of 2 rows are left out, the first prompts\.jsonl:2: there is no prompt/);
});
