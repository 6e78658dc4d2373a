import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { compareShapes, type Shapes } from "../support/data-shapes.js";

/** Random rows of eight public shapes, as transformers' and LLaMA-Factory's own code writes them, live. */

const peers = process.env.ATTUNE_PEERS;
const llamaFactory = process.env.ATTUNE_LLAMA_FACTORY;
const skip =
  peers === undefined || llamaFactory === undefined
    ? "set ATTUNE_PEERS to a venv with transformers and ATTUNE_LLAMA_FACTORY to a folder with the package llamafactory, unpacked"
    : false;
const script = fileURLToPath(new URL("../../../test/fixtures/make_data_shapes.py", import.meta.url));
const { templates } = JSON.parse(
  readFileSync(new URL("../../../test/fixtures/data-shapes.json", import.meta.url), "utf8"),
) as Shapes;

// Texts begin and end with a letter: what templates trim is another test's matter.
const text = fc
  .array(fc.constantFrom("Hello", "it's", 'a "quote"', "你好", "🙂", "naïve", "{x}", "12.5", "\n\n", "—", "\\n", "the end"), {
    maxLength: 6,
  })
  .map((words) => `A${words.join(" ")}z`);
const thoughts = text.map((words) => `Thoughts: ${words}`); // nowhere else in a row
const value = fc.oneof(
  text,
  fc.integer({ min: -1000, max: 1000 }),
  fc.boolean(),
  fc.constant(null),
  fc.array(text, { maxLength: 2 }),
);
const call = fc.record({
  name: fc.constantFrom("get_weather", "now"),
  arguments: fc.dictionary(fc.constantFrom("city", "days", "größe"), value, { maxKeys: 3 }),
});
const schema = fc.record({
  name: fc.constantFrom("get_weather", "now"),
  description: text,
  parameters: fc.constant({
    type: "object",
    properties: { city: { type: "string", description: "a city" } },
    required: ["city"],
  }),
});
const tools = fc.array(schema, { minLength: 1, maxLength: 2 });
const optional = fc.oneof(fc.constant(""), text);
const talk = fc.array(fc.tuple(text, text), { minLength: 1, maxLength: 3 });
const turn = (role: string, content: unknown, keys: object = {}) => ({ role, content, ...keys });

const shapes: Readonly<Record<string, fc.Arbitrary<object>>> = {
  alpaca: fc.record({
    instruction: text,
    input: optional,
    output: text,
    system: optional,
    history: fc.oneof(fc.constant([]), talk),
  }),
  dolly: fc.record({ instruction: text, context: optional, response: text, category: fc.constant("qa") }),
  openorca: fc.record({ id: text, system_prompt: optional, question: text, response: text }),
  "prompt-input": fc.record({ prompt: text, input: optional, response: text }),
  sharegpt: fc
    .record({ tools, talk, calls: fc.array(call, { minLength: 1, maxLength: 2 }), result: text, answer: text })
    .map((row) => ({
      conversations: [
        ...row.talk.flatMap(([q, a]) => [
          { from: "human", value: q },
          { from: "gpt", value: a },
        ]),
        { from: "human", value: row.answer },
        { from: "function_call", value: JSON.stringify(row.calls.length === 1 ? row.calls[0] : row.calls) },
        { from: "observation", value: row.result },
        { from: "gpt", value: row.answer },
      ],
      tools: JSON.stringify(row.tools),
    })),
  openai: fc
    .record({
      tools,
      talk,
      weights: fc.array(fc.constantFrom(0, 1), { minLength: 3, maxLength: 3 }),
      call,
      content: optional,
      result: text,
      answer: text,
    })
    .map((row) => ({
      messages: [
        ...row.talk.flatMap(([q, a], i) => [turn("user", q), turn("assistant", a, { weight: row.weights[i] })]),
        turn("user", row.answer),
        turn("assistant", row.content, {
          tool_calls: [{ id: "c", type: "function", function: { ...row.call, arguments: JSON.stringify(row.call.arguments) } }],
        }),
        turn("tool", row.result, { tool_call_id: "c" }),
        turn("assistant", row.answer),
      ],
      tools: row.tools.map((each) => ({ type: "function", function: each })),
    })),
  "llamafactory-v1": fc.record({ talk, system: text, thoughts, call, isLearned: fc.boolean() }).map((row) => ({
    messages: [
      turn("system", [{ type: "text", value: row.system }], { loss_weight: 0 }),
      ...row.talk.flatMap(([q, a]) => [
        turn("user", [{ type: "text", value: q }], { loss_weight: 0 }),
        turn(
          "assistant",
          [
            { type: "text", value: a },
            { type: "text", value: "." },
          ],
          { loss_weight: Number(row.isLearned) },
        ),
      ]),
      turn("user", [{ type: "text", value: row.system }], { loss_weight: 0 }),
      turn(
        "assistant",
        [
          { type: "reasoning", value: row.thoughts },
          { type: "tool_call", value: JSON.stringify(row.call) },
        ],
        { loss_weight: 1 },
      ),
    ],
  })),
  thinking: fc
    .record({ talk, question: text, thoughts, answer: text, key: fc.constantFrom("reasoning_content", "thinking") })
    .map((row) => ({
      messages: [
        ...row.talk.flatMap(([q, a]) => [turn("user", q), turn("assistant", a)]),
        turn("user", row.question),
        turn("assistant", row.answer, { [row.key]: row.thoughts }),
      ],
    })),
};

test("random rows of eight shapes", { skip }, async () => {
  const rows = Object.fromEntries(
    Object.entries(shapes).map(([name, shape], i) => [name, fc.sample(shape, { numRuns: 60, seed: 31 + i })]),
  );
  const python = spawnSync(join(peers!, "bin", "python"), [script, llamaFactory!, "--render"], {
    input: JSON.stringify(rows),
    encoding: "utf8",
    maxBuffer: 2 ** 30,
  });
  assert.equal(python.status, 0, python.stderr);
  const { equal, refused } = await compareShapes({ templates, rows, rendered: JSON.parse(python.stdout) });
  console.log(`${equal} renderings equal, ${refused} refused by both or where the other drops words`);
  assert.ok(equal > refused);
});
