import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { ChatTemplate, type Dialogue, type Message, type Tool } from "./chat-template.js";
import { renderConversation } from "./supervised.js";
import { chooseTemplate, namedTemplate, templateNames } from "./templates.js";
import { byteLevel, chatOf, readFixture, talk } from "./testing/byte-level.js";
import { type ToolFormatName, toolFormatNames, withToolFormat } from "./tool-formats.js";

/** Made by test/fixtures/make_tool_formats.py. */
const golden = readFixture<{
  tools: Tool[];
  calls: { name: string; arguments: Record<string, unknown> }[];
  formats: Record<ToolFormatName, { tools: string; one: string; two: string }>;
}>("tool-formats.json");

const roles = { bos_token: "<s>", eos_token: "</s>" };
const now = new Date(2026, 2, 5);
const render = (source: string, dialogue: Dialogue) =>
  new ChatTemplate(source, { roles, origin: "test", now }).render(dialogue, { addGenerationPrompt: false });
const calling = (count: number, content = ""): Message => ({
  role: "assistant",
  content,
  tool_calls: golden.calls.slice(0, count).map((call) => ({ type: "function", function: call })),
});

const ownFormat: Record<string, ToolFormatName> = Object.fromEntries([
  ...["qwen", "qwen3", "qwen3_nothink"].map((name) => [name, "qwen"]),
  ...["mistral", "ministral", "mistral_small"].map((name) => [name, "mistral"]),
  ["llama3", "llama3"],
]);

test("named templates write tools and calls as LLaMA-Factory does", () => {
  for (const name of templateNames) {
    const expected = golden.formats[ownFormat[name] ?? "default"];
    const dialogue = { messages: [...talk("Q"), calling(2)], tools: golden.tools };
    const text = render(namedTemplate(name), dialogue);
    if (name === "phi4_mini") assert.ok(text.includes('<|tool|>[{"type": "function", "function": {"name": "get_weather"'), text);
    else assert.ok(text.includes(expected.tools), `${name}: ${text}`);
    assert.ok(text.includes(expected.two), `${name}: ${text}`);
    const spoken = render(namedTemplate(name), { messages: [...talk("Q"), calling(1, "Let me look.")] });
    assert.ok(spoken.includes(expected.one) && spoken.includes("Let me look."), `${name}: ${spoken}`);
    for (const other of toolFormatNames)
      assert.ok(render(namedTemplate(name, other), dialogue).includes(golden.formats[other].two), `${name}, ${other}`);
  }
  const { qwen, mistral } = golden.formats;
  const dialogue = { messages: [{ role: "system", content: "S" }, ...talk("Q"), calling(1)], tools: golden.tools };
  assert.equal(
    render(namedTemplate("qwen"), dialogue),
    `<|im_start|>system\nS${qwen.tools}<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n${qwen.one}<|im_end|>\n`,
  );
  assert.equal(
    render(namedTemplate("mistral"), dialogue),
    `<s>[INST] S${mistral.tools}\n\nQ[/INST][TOOL_CALLS] ${mistral.one}</s>`,
  );
  assert.equal(
    render(namedTemplate("mistral"), { messages: [...talk("Q"), calling(1, "Let me look.")] }),
    `<s>[INST] Q[/INST] Let me look.[TOOL_CALLS] ${mistral.one}</s>`,
  );
});

test("tool_format writes tools and calls into the messages of a template that has no place for them", () => {
  const own = byteLevel.roles;
  const source = "\n  {% for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}";
  assert.equal(
    render(withToolFormat(source, "qwen"), { messages: talk("Q", "A") }),
    render(source, { messages: talk("Q", "A") }),
  );
  for (const name of toolFormatNames) {
    const { tools, one } = golden.formats[name];
    const template = withToolFormat(source, name);
    const chat = [...talk("Q"), calling(1, "Look."), { role: "tool", content: "4", name: "get_weather" }];
    const end = `[user|Q][assistant|Look.\n${one}][tool|4]`;
    assert.equal(render(template, { messages: chat, tools: golden.tools }), `\n[system|${tools}]${end}`);
    assert.equal(
      render(template, { messages: [{ role: "system", content: "S" }, ...chat], tools: golden.tools }),
      `\n[system|S${tools}]${end}`,
    );
  }
  assert.equal(own.bos_token, "<s>");
});

test("tool_format is chosen by name, for a named template and for the model's own", () => {
  const { template, notices } = chooseTemplate(byteLevel, { name: "chatml", toolFormat: "qwen" });
  assert.equal(template.source, namedTemplate("chatml", "qwen"));
  assert.ok(!notices.some((notice) => notice.includes("tool_format")));
});

test("calls are learned, whole, and a template without a place for them or for tools is refused", () => {
  const tokenizer = byteLevel;
  const format = (source: string) => ({
    tokenizer,
    template: new ChatTemplate(source, { roles: tokenizer.roles, origin: "own" }),
  });
  const learned = (source: string, dialogue: Dialogue) => {
    const { ids, supervised } = renderConversation(format(source), dialogue);
    return tokenizer.decode(
      ids.filter((_, i) => supervised[i] === 1),
      { special: true },
    );
  };
  const messages = [...talk("Q"), calling(1, "")];
  const { one } = golden.formats.qwen;
  assert.equal(learned(namedTemplate("chatml", "qwen"), { messages, tools: golden.tools }), `${one}<|im_end|>`);
  assert.equal(learned(namedTemplate("chatml", "qwen"), { messages: [...talk("Q"), calling(1, "Hm")] }), `Hm\n${one}<|im_end|>`);

  const plain =
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  for (const content of ["", "Let me look."])
    assert.throws(() => learned(plain, { messages: [...talk("Q"), calling(1, content)] }), {
      code: "DATA",
      message: /no place for tool calls \(message 2\)\. Set `tool_format:`/,
    });
  assert.throws(() => learned(plain, { messages: talk("Q", "A"), tools: golden.tools }), {
    code: "DATA",
    message: /no place for the tools that are offered \(get_weather, now\)/,
  });
  assert.equal(learned(withToolFormat(plain, "qwen"), { messages, tools: golden.tools }), `${one}<|im_end|>\n`.trimEnd());

  // DeepSeek's way: calls only where the content is none, words only where it is not.
  const either =
    "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}<|im_start|>assistant\n{{ m.tool_calls[0].function.name }}({{ m.tool_calls[0].function.arguments | tojson }})<|im_end|>{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  const call = `get_weather({"city": "Tromsø", "unit": "celsius", "days": [0, 1], "exact": true})<|im_end|>`;
  assert.equal(learned(either, { messages }), call);
  assert.throws(() => learned(either, { messages: [...talk("Q"), calling(1, "Look.")] }), {
    code: "DATA",
    message: /tool calls/,
  });

  // And with arguments that it takes for texts.
  const texts = either.replace("arguments | tojson", "arguments + ''");
  assert.equal(learned(texts, { messages }), call);

  // Without a token that ends turns, a call ends where the chat goes on.
  const endless =
    "{% for m in messages %}{{ '\n' + m.role + ': ' + (m.content or '') }}{% for c in m.tool_calls or [] %}<{{ c.function.name }} city={{ c.function.arguments.city }}>{% endfor %}{% endfor %}";
  const city = { type: "function" as const, function: { name: "get_weather", arguments: { city: "Oslo" } } };
  const goingOn = [
    ...talk("Q"),
    { ...calling(1), tool_calls: [city] },
    { role: "tool", content: "4" },
    { role: "assistant", content: "4°" },
  ];
  const thoughtless = `${endless}{% if add_generation_prompt %}\nassistant: <think>{% endif %}`;
  for (const source of [endless, thoughtless])
    assert.ok(learned(source, { messages: goingOn }).includes("<get_weather city=Oslo>\nassistant: 4°"), source);

  // A template that writes names alone loses what is called with.
  const nameOnly = plain.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}",
  );
  assert.throws(() => learned(nameOnly, { messages }), { code: "DATA", message: /tool calls/ });
  const number = { ...calling(1), tool_calls: [{ type: "function" as const, function: { name: "add", arguments: { a: 17 } } }] };
  assert.throws(() => learned(nameOnly, { messages: [...talk("Q"), number] }), { code: "DATA", message: /tool calls/ });
});

test("a template that writes thoughts gets them, and learns them", () => {
  const chat = chatOf(byteLevel, "chatml");
  const qwen3 = { tokenizer: byteLevel, template: chooseTemplate(byteLevel, { name: "qwen3" }).template };
  const messages = [...talk("3 times 4?"), { role: "assistant", content: "12", reasoning_content: "3+3+3+3" }];
  const { ids, supervised } = renderConversation(qwen3, { messages });
  const text = byteLevel.decode(
    ids.filter((_, i) => supervised[i] === 1),
    { special: true },
  );
  assert.equal(text, "<think>\n3+3+3+3\n</think>\n\n12<|im_end|>");
  assert.throws(() => renderConversation(chat, { messages }), {
    code: "DATA",
    message: /leaves out the thoughts of the last answer/,
  });
});

test("no control token comes out of arguments, names, thoughts or tools", () => {
  const controls = [...byteLevel.controlIds].map((id) => byteLevel.decode([id], { special: true }));
  const text = fc
    .array(
      fc.oneof(
        fc.constantFrom(...controls, "<|im_", "end|>", "\uFDD0", "\uFDD01\uFDD1", "\uFDD21\uFDD3"),
        fc.string({ maxLength: 5 }),
      ),
      {
        minLength: 1,
        maxLength: 5,
      },
    )
    .map((parts) => `a${parts.join("")}z`);
  const dialogue = fc.record({ name: text, key: text, value: text, thoughts: text, description: text, content: text, id: text });
  const writer = { tokenizer: byteLevel, template: chooseTemplate(byteLevel, { name: "qwen3" }).template };
  const dialogueOf = ({ name, key, value, thoughts, description, content, id }: Record<string, string>): Dialogue => ({
    tools: [{ type: "function", function: { name: name!, description: description!, parameters: { [key!]: [value!] } } }],
    messages: [
      { role: "user", content: content! },
      {
        role: "assistant",
        content: "",
        reasoning_content: thoughts!,
        tool_calls: [
          { id: id!, type: "function", function: { name: name!, arguments: { [key!]: value!, deep: [{ a: value! }] } } },
        ],
      },
      { role: "tool", content: content!, name: name!, tool_call_id: id! },
      { role: "assistant", content: content! },
    ],
  });
  const plain = Object.fromEntries(
    ["name", "key", "value", "thoughts", "description", "content", "id"].map((key) => [key, "aaz"]),
  );
  const controlsOf = (ids: Int32Array) => [...ids].filter((id) => byteLevel.controlIds.has(id));
  const expected = controlsOf(renderConversation(writer, dialogueOf(plain)).ids);
  fc.assert(
    fc.property(dialogue, (words) => {
      assert.deepEqual(controlsOf(renderConversation(writer, dialogueOf(words)).ids), expected);
    }),
    { numRuns: process.env.ATTUNE_SOAK ? 10_000 : 150 },
  );
});

test("turns that are not to be learned are read, and are no labels", () => {
  const chat = chatOf(byteLevel, "chatml");
  const messages: Message[] = talk("Hello", "Hi!", "Bye", "See you").map((message, i) =>
    i === 1 ? { ...message, isLearned: false } : message,
  );
  const labels = (options = {}) => {
    const { ids, supervised } = renderConversation(chat, { messages }, options);
    return byteLevel.decode(
      ids.filter((_, i) => supervised[i] === 1),
      { special: true },
    );
  };
  assert.deepEqual(
    renderConversation(chat, { messages }).ids,
    renderConversation(chat, { messages: talk("Hello", "Hi!", "Bye", "See you") }).ids,
  );
  assert.equal(labels(), "See you<|im_end|>");
  assert.equal(labels({ maskHistory: true }), "See you<|im_end|>");
  assert.ok(labels({ trainOnPrompt: true }).includes("Hello") && !labels({ trainOnPrompt: true }).includes("Hi!"));
  const none = messages.map((message) => ({ ...message, isLearned: false }));
  assert.throws(() => renderConversation(chat, { messages: none }), {
    code: "DATA",
    message: /no assistant message is to be learned/,
  });
});
