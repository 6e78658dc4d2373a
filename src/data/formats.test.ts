import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";
import fc from "fast-check";
import type { Dialogue, Message } from "../text/chat-template.js";
import { dataDocs } from "./docs.js";
import { conversationColumns, conversations, questionColumns, refusedColumns } from "./formats.js";
import { labelledColumns, labelledTexts } from "./labelled-texts.js";
import { partTypes, reasoningKeys, refusedMessageKeys, roleNames, weightKeys } from "./messages.js";
import { Fields, mostChars, RowFault, type RowFormat, Tally } from "./row-format.js";
import { anyRow } from "./testing/datasets.js";
import { textColumns, texts } from "./texts.js";

interface Reading<T> {
  readonly said: T;
  readonly notices: string[];
}

function readWith<T, Layout>(
  format: RowFormat<T, Layout>,
  row: object,
  entry?: Record<string, unknown>,
): Reading<Omit<T, "where">> {
  const tally = new Tally();
  const fields = new Fields(JSON.parse(JSON.stringify(row)), "columns");
  const said = format.read(fields, entry && format.layoutOfEntry(entry, "info"), tally);
  tally.done(fields);
  return { said: JSON.parse(JSON.stringify(said)), notices: tally.notices() }; // objects out of JSON text have no prototype
}

const readRow = (row: object, entry?: Record<string, unknown>) => readWith(conversations, row, entry);
const said = (row: object, entry?: Record<string, unknown>): Dialogue => readRow(row, entry).said;

function fault(read: () => unknown): string {
  try {
    read();
  } catch (error) {
    assert.ok(error instanceof RowFault, String(error));
    return error.message;
  }
  return assert.fail("the row was read");
}

const user: Message = { role: "user", content: "Q" };
const answer: Message = { role: "assistant", content: "A" };
const call = { type: "function", function: { name: "f", arguments: { x: 1 } } } as const;
const chat = (...messages: object[]) => ({ messages });
const answerWith = (keys: object) => chat(user, { ...answer, ...keys });
const lastOf = ({ messages }: Dialogue) => messages.at(-1)!;

test("tool calls: OpenAI's, its older form, ShareGPT's turns, LLaMA-Factory's parts, all become the same", () => {
  const wrapped = { id: "c1", type: "function", function: { name: "f", arguments: '{"x": 1}' } };
  const bare = { name: "f", arguments: { x: 1 } };
  const expected = { role: "assistant", content: "", tool_calls: [call] };
  const rows: [object, object][] = [
    [chat(user, { role: "assistant", content: "", tool_calls: [wrapped] }), { ...expected, tool_calls: [{ id: "c1", ...call }] }],
    [chat(user, { role: "assistant", content: null, tool_calls: [bare] }), expected],
    [chat(user, { role: "assistant", tool_calls: JSON.stringify([bare]) }), expected],
    [
      chat(user, { role: "assistant", content: "Look.", tool_calls: [bare, bare] }),
      { ...expected, content: "Look.", tool_calls: [call, call] },
    ],
    [chat(user, { role: "assistant", content: null, function_call: { name: "f", arguments: '{"x": 1}' } }), expected],
    [
      {
        conversations: [
          { from: "human", value: "Q" },
          { from: "function_call", value: JSON.stringify(bare) },
        ],
      },
      expected,
    ],
    [
      {
        conversations: [
          { from: "human", value: "Q" },
          { from: "function_call", value: JSON.stringify([bare, bare]) },
        ],
      },
      { ...expected, tool_calls: [call, call] },
    ],
    [
      {
        conversations: [
          { from: "human", value: "Q" },
          { from: "function_call", value: `<think>hm</think>${JSON.stringify(bare)}` },
        ],
      },
      { ...expected, content: "<think>hm</think>" },
    ],
    [
      {
        conversations: [
          { from: "human", value: "Q" },
          { from: "function_call", value: `Look.\n<tool_call>${JSON.stringify(bare)}</tool_call>` },
        ],
      },
      { ...expected, content: "Look." },
    ],
    [chat(user, { role: "tool_call", content: JSON.stringify({ name: "f", parameters: { x: 1 } }) }), expected],
    [chat(user, { role: "assistant", content: [{ type: "tool_call", value: JSON.stringify(bare) }] }), expected],
    [
      chat(user, { role: "assistant", content: "", tool_calls: [{ name: "g", arguments: "" }] }),
      { ...expected, tool_calls: [{ type: "function", function: { name: "g", arguments: {} } }] },
    ],
  ];
  for (const [row, message] of rows) assert.deepEqual(lastOf(said(row)), message, JSON.stringify(row));

  const answers = said(
    chat(
      user,
      answer,
      { role: "tool", content: "7", tool_call_id: "c1", name: "f" },
      { role: "function", name: "f", content: "7" },
      answer,
    ),
  );
  assert.deepEqual(answers.messages.slice(2, 4), [
    { role: "tool", content: "7", name: "f", tool_call_id: "c1" },
    { role: "tool", content: "7", name: "f" },
  ]);
});

test("tools: lists and JSON text, wrapped and bare, in a column or in the system message", () => {
  const schema = { name: "f", description: "d", parameters: { type: "object" } };
  const tool = { type: "function", function: schema };
  const row = answerWith({});
  for (const tools of [
    [tool],
    [schema],
    JSON.stringify([schema]),
    JSON.stringify(tool),
    [JSON.stringify(schema)],
    [{ function: schema }],
  ])
    assert.deepEqual(said({ ...row, tools }).tools, [tool], JSON.stringify(tools));
  assert.deepEqual(said({ ...row, functions: [schema] }).tools, [tool]);
  assert.deepEqual(said({ instruction: "Q", output: "A", tools: [schema] }).tools, [tool]);
  assert.deepEqual(said(chat({ role: "system", content: "S", tools: [schema] }, user, answer)).tools, [tool]);
  for (const tools of [[], "[]", "", null]) assert.equal(said({ ...row, tools }).tools, undefined);
  const faults: [RegExp, unknown][] = [
    [/"tools" is not valid JSON/, "f(x)"],
    [/"tools" has to describe a function, got the number 7/, [7]],
    [/"tools", item 2, has no name/, [schema, {}]],
    [/tool of type "web_search"/, [{ type: "web_search" }]],
  ];
  for (const [message, tools] of faults)
    assert.match(
      fault(() => said({ ...row, tools })),
      message,
    );
});

test("calls that cannot be kept are refused", () => {
  const withCalls = (tool_calls: unknown) => chat(user, { role: "assistant", content: "", tool_calls });
  const faults: [RegExp, object][] = [
    [/"arguments" of "tool_calls" of message 2 is not valid JSON/, withCalls([{ name: "f", arguments: "{x}" }])],
    [/"arguments" of .* has to be an object, got a list/, withCalls([{ name: "f", arguments: "[1]" }])],
    [/nested too deeply/, withCalls([{ name: "f", arguments: "[".repeat(1e5) }])],
    [/duplicate key "x"/, withCalls([{ name: "f", arguments: '{"x": 1, "x": 2}' }])],
    [/number 12345678901234567000, which is too large/, withCalls([{ name: "f", arguments: '{"x": 12345678901234567890}' }])],
    [/names no function/, withCalls([{ arguments: {} }])],
    [/item 2, has to be \{"name".*got the number 7/, withCalls([call, 7])],
    [/call of type "custom"/, withCalls([{ type: "custom", custom: {} }])],
    [/has both "tool_calls" and "function_call"/, answerWith({ tool_calls: [call], function_call: call.function })],
    [/message 1 has "tool_calls", which only an assistant's/, chat({ ...user, tool_calls: [call] }, answer)],
    [
      /the call in message 2 is not valid JSON/,
      {
        conversations: [
          { from: "human", value: "Q" },
          { from: "function_call", value: "f()" },
        ],
      },
    ],
    [/message 2 has no "content" and calls nothing/, chat(user, { role: "assistant", content: null, tool_calls: [] })],
  ];
  for (const [message, row] of faults)
    assert.match(
      fault(() => said(row)),
      message,
    );
});

test("thoughts: keys of messages, parts, columns", () => {
  const expected = { ...answer, reasoning_content: "T" };
  for (const key of reasoningKeys) assert.deepEqual(lastOf(said(answerWith({ [key]: "T" }))), expected, key);
  for (const part of [
    { type: "thinking", thinking: "T" },
    { type: "reasoning", value: "T" },
    { type: "reasoning", text: "T" },
  ])
    assert.deepEqual(lastOf(said(answerWith({ content: [part, { type: "text", text: "A" }] }))), expected);
  assert.deepEqual(lastOf(said(answerWith({ reasoning: "T", reasoning_content: "T" }))), expected);
  assert.match(
    fault(() => said(answerWith({ reasoning: "T", thinking: "U" }))),
    /different thoughts/,
  );
  assert.match(
    fault(() =>
      said(
        answerWith({
          reasoning: "T",
          content: [
            { type: "thinking", thinking: "U" },
            { type: "text", text: "A" },
          ],
        }),
      ),
    ),
    /twice/,
  );
  for (const key of conversationColumns.reasoning)
    assert.deepEqual(lastOf(said({ question: "Q", answer: "A", [key]: "T" })), expected, key);
  const flagged = readRow({ question: "Q", answer: "A", reasoning: "on", thinking: true });
  assert.deepEqual(lastOf(flagged.said), answer);
  assert.match(flagged.notices.join(), /not used.*columns "reasoning" \(1\), "thinking" \(1\)/);
});

test("weights: an assistant's message is learned or only read", () => {
  for (const key of weightKeys) {
    for (const value of [0, false])
      assert.equal(said(chat(user, { ...answer, [key]: value }, user, answer)).messages[1]!.isLearned, false, key);
    for (const value of [1, true, null]) assert.equal("isLearned" in lastOf(said(answerWith({ [key]: value }))), false, key);
    for (const value of [0.5, "1", [1], 2])
      assert.match(
        fault(() => said(answerWith({ [key]: value }))),
        new RegExp(`"${key}" of message 2 has to be 0 or 1`),
      );
    assert.match(
      fault(() => said(chat({ ...user, [key]: 1 }, answer))),
      /not the assistant's.*train_on_prompt/,
    );
    assert.deepEqual(said(chat({ ...user, [key]: 0 }, answer)).messages, [user, answer]);
  }
  assert.match(
    fault(() => said(answerWith({ weight: 0 }))),
    /no answer is to be learned/,
  );
  assert.match(
    fault(() => said(answerWith({ weight: 0, train: true }))),
    /learned by one of "weight", "train", and not by another/,
  );
});

test("passages, system prompts, histories and other public names", () => {
  const roles = ({ messages }: Dialogue) => messages.map(({ role, content }) => `${role}: ${content}`);
  assert.deepEqual(roles(said({ instruction: "Who?", context: "By Ada.", response: "Ada", category: "qa" })), [
    "user: Who?\nBy Ada.",
    "assistant: Ada",
  ]);
  assert.deepEqual(roles(said({ id: 1, system_prompt: "S", question: "Q", response: "A" })), [
    "system: S",
    "user: Q",
    "assistant: A",
  ]);
  assert.deepEqual(roles(said({ prompt: "Q", input: "I", response: "A" })), ["user: Q\nI", "assistant: A"]);
  assert.deepEqual(roles(said({ prompt: "Q", response: "A", history: [["a", "b"]], system: "S" })), [
    "system: S",
    "user: a",
    "assistant: b",
    "user: Q",
    "assistant: A",
  ]);
  assert.deepEqual(roles(said({ Question: "Q", Response: "A" })), ["user: Q", "assistant: A"]);
  assert.deepEqual(roles(said({ problem: "Q", solution: "S", answer: "A" })), ["user: Q", "assistant: S"]);
  assert.deepEqual(roles(said({ instruction: null, output: null, prompt: "Q", completion: "A" })), ["user: Q", "assistant: A"]);
  assert.deepEqual(roles(said({ ...answerWith({}), system: "S" })), ["system: S", "user: Q", "assistant: A"]);
  assert.deepEqual(roles(said({ ...chat({ role: "system", content: "S" }, user, answer), system: "S" })), [
    "system: S",
    "user: Q",
    "assistant: A",
  ]);
  // TRL's conversational prompt and completion: the completion alone is learned.
  assert.deepEqual(said({ prompt: [user, answer, user], completion: [answer] }).messages, [
    user,
    { ...answer, isLearned: false },
    user,
    answer,
  ]);
});

test("roles: every alias, in any case, anywhere; unknown ones are refused with advice", () => {
  for (const [role, names] of Object.entries(roleNames))
    for (const name of names)
      for (const written of [name, name.toUpperCase()]) {
        const content = role === "call" ? '{"name": "f"}' : "x";
        const { messages } = said({ conversations: [user, { from: written, value: content }, answer] });
        assert.equal(messages[1]!.role, role === "call" ? "assistant" : role, name);
      }
  assert.match(
    fault(() => said(chat({ role: "narrator", content: "x" }, answer))),
    /the role "narrator"; expected one of system.*`tags`/,
  );
  assert.match(
    fault(() => said(chat({ content: "x" }, answer))),
    /message 1 has neither "from" and "value"/,
  );
  const tags = { formatting: "sharegpt", tags: { user_tag: "me", assistant_tag: "narrator", function_tag: "does" } };
  const row = {
    conversations: [
      { from: "me", value: "Q" },
      { from: "does", value: '{"name": "f"}' },
      { from: "narrator", value: "A" },
    ],
  };
  assert.deepEqual(
    said(row, tags).messages.map(({ role, tool_calls }) => [role, tool_calls?.length]),
    [
      ["user", undefined],
      ["assistant", 1],
      ["assistant", undefined],
    ],
  );
});

test("LLaMA-Factory's v1 rows", () => {
  const part = (type: string, value: string) => ({ type, value });
  const { said: dialogue, notices } = readRow({
    messages: [
      { role: "system", content: [part("text", "S")], loss_weight: 0.0 },
      { role: "user", content: [part("text", "Q")], loss_weight: 0.0 },
      {
        role: "assistant",
        content: [part("reasoning", "T"), part("text", "Look."), part("tool_call", '{"name": "f", "arguments": {"x": 1}}')],
        loss_weight: 0.0,
      },
      { role: "tool", content: [part("text", "7")], loss_weight: 0.0 },
      { role: "assistant", content: [part("text", "A"), part("text", "B")], loss_weight: 1.0 },
    ],
    tools: '[{"type": "function", "function": {"name": "f"}}]',
    extra_info: "x",
    _dataset_name: "d",
  });
  assert.deepEqual(dialogue, {
    messages: [
      { role: "system", content: "S" },
      user,
      { role: "assistant", content: "Look.", reasoning_content: "T", tool_calls: [call], isLearned: false },
      { role: "tool", content: "7" },
      { role: "assistant", content: "AB" },
    ],
    tools: [{ type: "function", function: { name: "f" } }],
  });
  assert.deepEqual(notices, ['not used, and how often each is filled: columns "extra_info" (1), "_dataset_name" (1).']);
});

test("what is not used is named once, with its count", () => {
  const tally = new Tally();
  for (let i = 0; i < 3; i++) {
    const fields = new Fields(
      {
        id: i,
        source: i > 0 ? "web" : "",
        nothing: null,
        parallel_tool_calls: false,
        messages: [
          { ...user, name: "Ann", content: [{ type: "text", text: "Q", cache_control: {}, citations: [1] }] },
          { ...answer, annotations: [1], tool_calls: [{ ...call, index: 0 }] },
        ],
      },
      "columns",
    );
    conversations.read(fields, undefined, tally);
    tally.done(fields);
  }
  assert.deepEqual(tally.notices(), [
    'not used, and how often each is filled: columns "id" (3), "parallel_tool_calls" (3), "source" (2); ' +
      'keys of messages "name" (3), "annotations" (3); keys of parts of messages "citations" (3); keys of tool calls "index" (3).',
  ]);
});

test("docs/data.md is what the lists give, and the lists are what is done", async () => {
  const written = await readFile(new URL("../../../docs/data.md", import.meta.url), "utf8"); // from dist/src/data
  assert.equal(written, dataDocs(), "run: npm run build && node scripts/make-data-docs.mjs");

  for (const [question, answers] of Object.entries(questionColumns))
    for (const each of answers)
      assert.deepEqual(said({ [question]: "Q", [each]: "A" }).messages, [user, answer], `${question}, ${each}`);
  const base = { question: "Q", answer: "A" };
  const filled: Record<keyof typeof conversationColumns, [value: unknown, expected: Dialogue]> = {
    messages: [[user, answer, user, answer], { messages: [user, answer, user, answer] }],
    query: ["more", { messages: [{ ...user, content: "Q\nmore" }, answer] }],
    system: ["S", { messages: [{ role: "system", content: "S" }, user, answer] }],
    history: [[["Q", "A"]], { messages: [user, answer, user, answer] }],
    tools: [[{ name: "f" }], { messages: [user, answer], tools: [{ type: "function", function: { name: "f" } }] }],
    reasoning: ["T", { messages: [user, { ...answer, reasoning_content: "T" }] }],
  };
  for (const [kind, [value, expected]] of Object.entries(filled))
    for (const name of conversationColumns[kind as keyof typeof filled]) {
      const { said: dialogue, notices } = readRow({ ...base, [name]: value });
      assert.deepEqual(dialogue, expected, name);
      if (kind !== "messages") assert.deepEqual(notices, [], name);
    }
  for (const name of Object.keys(refusedColumns)) {
    assert.match(
      fault(() => said({ ...base, [name]: ["x"] })),
      new RegExp(`the row has "${name}"`),
    );
    assert.match(
      fault(() => said({ ...answerWith({}), [name]: ["x"] })),
      new RegExp(`the row has "${name}"`),
    );
    assert.deepEqual(said({ ...base, [name]: null }).messages, [user, answer]);
    const mapped = readRow({ ...base, [name]: ["x"] }, { columns: { prompt: "question", response: "answer" } });
    assert.match(mapped.notices.join(), new RegExp(`not used.*"${name}" \\(1\\)`));
  }
  for (const name of Object.keys(refusedMessageKeys)) {
    assert.match(
      fault(() => said(answerWith({ [name]: "x" }))),
      new RegExp(`message 2 has "${name}"`),
    );
    assert.deepEqual(said(answerWith({ [name]: null })).messages, [user, answer]);
  }
  for (const [type, kind] of Object.entries(partTypes)) {
    const message = lastOf(
      said(
        answerWith({
          content: [
            { type: "text", text: "A" },
            { type, value: kind === "calls" ? '{"name": "f"}' : "x" },
          ],
        }),
      ),
    );
    assert.deepEqual(
      [message.content, message.reasoning_content, message.tool_calls?.length],
      [kind === "text" ? "Ax" : "A", kind === "reasoning" ? "x" : undefined, kind === "calls" ? 1 : undefined],
    );
  }
  for (const type of ["image_url", "tool_use", "refusal", "redacted_thinking", 7])
    assert.match(
      fault(() => said(answerWith({ content: [{ type, value: "x" }] }))),
      /a part of type/,
    );

  for (const name of textColumns)
    assert.deepEqual(readWith(texts, { [name]: "T", id: 1 }), {
      said: { text: "T" },
      notices: ['not used, and how often each is filled: columns "id" (1).'],
    });
  for (const name of labelledColumns.text)
    for (const label of labelledColumns.label)
      assert.deepEqual(readWith(labelledTexts, { [name]: "T", [label]: "L" }), { said: { text: "T", label: "L" }, notices: [] });
  for (const pair of labelledColumns.pair)
    assert.match(
      fault(() => readWith(labelledTexts, { text: "T", label: "L", [pair]: "x" })),
      /pairs of texts/,
    );
});

test("rows of any JSON are read, or refused by name: nothing else comes of them", () => {
  let wereRead = 0;
  for (const format of [conversations, texts, labelledTexts] as RowFormat<unknown, never>[])
    fc.assert(
      fc.property(anyRow, (values) => {
        try {
          const { said: result } = readWith(format, values);
          assert.doesNotThrow(() => JSON.stringify(result));
          wereRead++;
        } catch (error) {
          assert.ok(error instanceof RowFault, error instanceof Error ? error.stack : String(error));
          assert.ok(error.message.length < 3000, error.message);
        }
      }),
      { numRuns: 1500, seed: 3 }, // few random rows can be read: how many is not left to chance
    );
  assert.ok(wereRead > 20, `${wereRead} rows were read`);
});

test("rows that are too long for any template or tokenizer are refused", () => {
  const long = "x ".repeat(mostChars.conversation / 2 + 1);
  for (const row of [
    answerWith({ content: long }),
    answerWith({ tool_calls: [{ name: "f", arguments: { long } }] }),
    { ...answerWith({}), tools: [{ name: long }] },
  ])
    assert.match(
      fault(() => said(row)),
      /the row has \d+ characters, more than the 1048576 allowed/,
    );
  assert.match(
    fault(() => said(chat(...Array.from({ length: 5e4 }, () => [user, answer]).flat()))),
    /characters/,
  );
  assert.match(
    fault(() => readWith(labelledTexts, { text: long, label: 1 })),
    /characters/,
  );
  assert.equal(readWith(texts, { text: long }).notices.length, 0);
  for (const character of ["x", "字", " ", "-", "😀"])
    assert.match(
      fault(() => readWith(texts, { text: `a${character.repeat(2 ** 17 + 1)}` })),
      /a word of \d+ characters, more than/,
    );
  assert.equal(readWith(texts, { text: "一二三，四五六。".repeat(2 ** 15) }).notices.length, 0);
  assert.match(
    fault(() => readWith(texts, { text: "x ".repeat(mostChars.document / 2 + 1) })),
    /characters/,
  );
});
