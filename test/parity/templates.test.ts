import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { AttuneError } from "../../src/errors.js";
import { ChatTemplate, type Dialogue, type Message, type Tool } from "../../src/text/chat-template.js";
import { renderConversation, renderPrompt } from "../../src/text/supervised.js";
import { namedTemplate, templateNames } from "../../src/text/templates.js";
import { byteLevel } from "../../src/text/testing/byte-level.js";
import { toolFormatNames, withToolFormat } from "../../src/text/tool-formats.js";

/**
 * Chat templates against transformers', live: the named ones, and every template of the folder that ATTUNE_TEMPLATES names (collect_templates.py
 * fills it), write chats of many kinds as Python's Jinja does, or are refused.
 */

const peers = process.env.ATTUNE_PEERS;
const folder = process.env.ATTUNE_TEMPLATES;
const skip = peers === undefined ? "ATTUNE_PEERS names no Python venv with transformers" : false;
const script = fileURLToPath(new URL("../../../test/parity/templates.py", import.meta.url));

const tool = (name: string, properties: object, more: object = {}): Tool => ({
  type: "function",
  function: {
    name,
    description: `Does ${name} “now” <b>&`,
    parameters: { type: "object", properties, required: Object.keys(properties).slice(0, 1) },
    ...more,
  },
});
const weather = tool("get_weather", {
  city: { type: "string", description: "a city's name" },
  unit: { type: "string", enum: ["celsius", "fahrenheit"] },
});
const add = tool(
  "add",
  {
    a: { type: "number" },
    b: { type: "integer", description: "b" },
    list: { type: "array", items: { type: "string" } },
    flag: { type: "boolean", default: false },
    obj: { type: "object", properties: { x: { type: ["string", "null"] } } },
  },
  { return: { type: "number" } },
);
const tools = [weather, add];
const call = (name: string, args: Record<string, unknown>, id?: string) =>
  ({ ...(id === undefined ? {} : { id }), type: "function", function: { name, arguments: args } }) as const;
const user = (content: string): Message => ({ role: "user", content });
const answer = (content: string, more: Partial<Message> = {}): Message => ({ role: "assistant", content, ...more });
const system = (content: string): Message => ({ role: "system", content });
const result = (content: string, more: Partial<Message> = {}): Message => ({ role: "tool", content, ...more });

const dialogues: readonly Dialogue[] = [
  { messages: [user("Hello")] },
  { messages: [user("Hello"), answer("Hi there!")] },
  { messages: [system("Be brief."), user("What's 2 + 2?"), answer("4")] },
  { messages: [system(""), user("Hello"), answer("Hi"), user("Bye")] },
  { messages: [system("S"), user("one"), answer("two"), user("three"), answer("four"), user("five"), answer("six")] },
  { messages: [user("  leading and trailing \n\n"), answer("\n\n    code()\n  "), user("\tTab\r\nCR"), answer("end \t")] },
  {
    messages: [
      user("你好，世界 🎉"),
      answer("ÀÉÎ 🙂👩‍👩‍👧 ﷽ ſ ß İ"),
      user("<b>&amp;'\"</b> {{ x }} {% y %}"),
      answer("\u0085x\u001f \u200b\ufeff"),
    ],
  },
  {
    messages: [
      user("Why?"),
      answer("<think>\nBecause.\n</think>\n\nSo."),
      user("And?"),
      answer("<think>\nwell\n\n</think>\n\nSee you"),
    ],
  },
  {
    messages: [
      user("Why?"),
      answer("So.", { reasoning_content: "Because it is." }),
      user("And?"),
      answer("Done", { reasoning_content: "\nhm\n" }),
    ],
  },
  {
    messages: [
      user("Weather?"),
      answer("", { tool_calls: [call("get_weather", { city: "Oslo" }, "abcdefghi")] }),
      result('{"temp": 4}', { name: "get_weather", tool_call_id: "abcdefghi" }),
      answer("It is 4 degrees."),
    ],
    tools,
  },
  {
    messages: [
      system("You may call."),
      user("Weather and sum?"),
      answer("Let me look.", {
        tool_calls: [
          call("get_weather", { city: 'Tromsø "x"', unit: "celsius" }, "abcdefgh1"),
          call("add", { a: 1.5, b: 2, list: ["x", "é"], flag: true, obj: { x: null } }, "abcdefgh2"),
        ],
      }),
      result("4", { name: "get_weather", tool_call_id: "abcdefgh1" }),
      result("3.5", { name: "add", tool_call_id: "abcdefgh2" }),
      answer("4 and 3.5"),
      user("thanks"),
      answer("bye"),
    ],
    tools,
  },
  {
    messages: [
      user("Think and call"),
      answer("", { reasoning_content: "I should call.", tool_calls: [call("add", { a: 1, b: 2 }, "abcdefghi")] }),
      result("3", { tool_call_id: "abcdefghi" }),
    ],
    tools,
  },
  { messages: [user("no id"), answer("", { tool_calls: [call("add", {})] }), result("3"), answer("three")] },
  { messages: [user("a tool, no call"), answer("none needed")], tools: [weather] },
  { messages: [system("S"), user("x")], tools },
  { messages: [user("system later"), answer("ok"), system("now be rude"), user("x"), answer("y")] },
  { messages: [user("a"), user("b"), answer("c"), answer("d")] },
  { messages: [answer("assistant first"), user("then user")] },
  { messages: [system("only system")] },
  { messages: [{ role: "developer", content: "dev" }, user("x"), answer("y")] },
  { messages: [user(""), answer("")] },
  {
    messages: [user("bare tools"), answer("y")],
    tools: [{ name: "f", description: "d", parameters: { type: "object", properties: {} } }],
  },
  { messages: [user("x"), answer("tail", { reasoning_content: "" })] },
  {
    messages: [
      user("<tool_response>\n5\n</tool_response>"),
      answer('<tool_call>\n{"name": "f"}\n</tool_call>'),
      user("/no_think x"),
      answer("</think>odd"),
    ],
  },
  { messages: [system("/think\nsystem\n\n"), user("x /no_think"), answer("y")] },
  {
    messages: [user("x"), answer("", { tool_calls: [call("add", { a: 1 }, "abcdefghi")] }), result("5", { name: "add" })],
    tools: [],
  },
];

/** Named templates are saved with adapters, so transformers has to write with them what attune trained on. */
const named = templateNames.flatMap((name) => [
  [name, namedTemplate(name)] as const,
  ...toolFormatNames.map((format) => [`${name} with tool_format ${format}`, namedTemplate(name, format)] as const),
]);
const rewritten = toolFormatNames.map(
  (format) => [`own with tool_format ${format}`, withToolFormat(namedTemplate("smollm2"), format)] as const,
);

test("templates write what transformers makes of them, or are refused", { skip }, (context) => {
  const collected = (folder === undefined ? [] : readdirSync(folder)).filter((name) => name.endsWith(".jinja"));
  const sources = [
    ...named,
    ...rewritten,
    ...collected.map((name) => [name, readFileSync(join(folder!, name), "utf8")] as const),
  ];
  const files = sources.map(([name]) => name);
  const templates = sources.map(([, source]) => source);
  const roles = { bos_token: "<s>", eos_token: "</s>", unk_token: "<unk>", pad_token: "<pad>" };
  const python = spawnSync(join(peers!, "bin", "python"), [script], {
    input: JSON.stringify({ templates, dialogues, roles }),
    encoding: "utf8",
    maxBuffer: 2 ** 30,
  });
  assert.equal(python.status, 0, python.stderr);
  const expected = JSON.parse(python.stdout) as (string | null)[][];

  const counts = { equal: 0, refusedByBoth: 0, refused: 0, learned: 0 };
  for (const [i, source] of templates.entries()) {
    const now = new Date(2026, 2, 5, 7, 8, 9);
    const template = refusing(() => new ChatTemplate(source, { roles, origin: files[i]!, now }));
    let at = 0;
    for (const dialogue of dialogues) {
      for (const addGenerationPrompt of [false, true]) {
        const theirs = expected[i]![at++]!;
        const ours = template && refusing(() => template.render(dialogue, { addGenerationPrompt }));
        if (theirs === null) assert.equal(ours, undefined, `${files[i]} refuses ${JSON.stringify(dialogue)}`);
        else if (ours !== undefined) assert.equal(ours, theirs, `${files[i]}: ${JSON.stringify(dialogue)}`);
        counts[theirs === null ? "refusedByBoth" : ours === undefined ? "refused" : "equal"]++;
      }
      // What is learned begins where the prompt ends, for every answer that the template writes as it generates it.
      if (template === undefined || dialogue.messages.at(-1)?.role !== "assistant") continue;
      const chat = { tokenizer: byteLevel, template };
      const rendered = refusing(() => renderConversation(chat, dialogue, { maskHistory: true }));
      if (rendered === undefined) continue;
      counts.learned++;
      const before = { ...dialogue, messages: dialogue.messages.slice(0, -1) };
      const prompt = refusing(() => renderPrompt(chat, before));
      const isContinued = prompt?.every((id, k) => rendered.ids[k] === id);
      if (isContinued)
        assert.equal(rendered.supervised.indexOf(1), Math.max(1, prompt!.length), `${files[i]}: ${JSON.stringify(dialogue)}`);
    }
  }
  context.diagnostic(
    `${collected.length} collected and ${named.length + rewritten.length} own templates, ${2 * dialogues.length} renderings of each: ${JSON.stringify(counts)}`,
  );
  assert.ok(counts.equal > 30 * templates.length, JSON.stringify(counts));
  assert.ok(counts.refused < templates.length, JSON.stringify(counts));
});

function refusing<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    if (error instanceof AttuneError) return undefined;
    throw error;
  }
}
