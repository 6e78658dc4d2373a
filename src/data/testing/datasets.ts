import fc from "fast-check";
import { conversationColumns, questionColumns, refusedColumns } from "../formats.js";
import { reasoningKeys, refusedMessageKeys, weightKeys } from "../messages.js";

const words = [
  "user",
  "assistant",
  "system",
  "tool",
  "gpt",
  "human",
  "function_call",
  "text",
  "tool_call",
  "function",
  '{"name": "f"}',
  "[]",
  "",
];
const value = fc.letrec<{ any: unknown }>((tie) => ({
  any: fc.oneof(
    { maxDepth: 4 },
    fc.constantFrom(null, true, 0, 1, 0.5, Number.MAX_VALUE, ...words),
    fc.string({ unit: "binary" }),
    fc.array(tie("any"), { maxLength: 3 }),
    fc.dictionary(
      fc.constantFrom(
        "name",
        "arguments",
        "function",
        "type",
        "text",
        "value",
        "role",
        "from",
        "content",
        "tool_calls",
        "__proto__",
        "constructor",
      ),
      tie("any"),
      { maxKeys: 4 },
    ),
  ),
})).any;
const keysOf = (record: object) => Object.keys(record);
const messageKeys = [
  "role",
  "from",
  "content",
  "value",
  "tool_calls",
  "function_call",
  "name",
  "tool_call_id",
  "tools",
  ...reasoningKeys,
  ...weightKeys,
  ...keysOf(refusedMessageKeys),
];
const message = fc.oneof(
  value,
  fc.dictionary(fc.constantFrom(...messageKeys), value, { maxKeys: 5 }),
  fc.record({ role: fc.constantFrom(...words), content: value, tool_calls: value }, { requiredKeys: [] }),
);
const list = fc.oneof(value, fc.array(message, { maxLength: 4 }));
const columns = [
  ...keysOf(questionColumns),
  ...Object.values(questionColumns).flat(),
  ...Object.values(conversationColumns).flat(),
  ...keysOf(refusedColumns),
  "text",
  "label",
  "chosen",
  "rejected",
  "__proto__",
  "toString",
];
/** Rows of any JSON under the names that rows are read by, and others. */
export const anyRow: fc.Arbitrary<object> = fc.oneof(
  fc.dictionary(fc.constantFrom(...columns), fc.oneof(value, list), { maxKeys: 8 }),
  fc.record({ messages: list, tools: value, system: value }, { requiredKeys: ["messages"] }),
);
