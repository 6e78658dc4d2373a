import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { availableParallelism } from "node:os";
import test from "node:test";
import fc from "fast-check";
import { DataError, ModelError } from "../errors.js";
import { ChatTemplate, type Message } from "./chat-template.js";
import { type ChatFormat, renderConversation, renderPrompt } from "./supervised.js";
import { byteLevel, chatOf, type GoldenCase, readFixture, sentencepiece, talk, templates } from "./testing/byte-level.js";

const golden = readFixture<GoldenCase[]>("golden.json");
const names = Object.keys(templates);

function textOf(chat: ChatFormat, ids: Iterable<number>): string {
  return chat.tokenizer.decode(ids, { special: true });
}

function learned(chat: ChatFormat, messages: readonly Message[], options = {}): string[] {
  const { ids, supervised } = renderConversation(chat, { messages }, options);
  const runs: number[][] = [];
  ids.forEach((id, i) => {
    if (supervised[i] === 0) return;
    if (i === 0 || supervised[i - 1] === 0) runs.push([]);
    runs.at(-1)!.push(id);
  });
  return runs.map((run) => textOf(chat, run));
}

test("ids, masks and prompts are those of transformers, for every template and both kinds of tokenizer", () => {
  assert.equal(golden.length, 120);
  for (const { tokenizer, template, messages, ids, mask, error } of golden) {
    const chat = chatOf(tokenizer === "byte-level" ? byteLevel : sentencepiece, template);
    const label = `${tokenizer}, ${template}: ${JSON.stringify(messages)}`;
    if (error !== undefined) {
      assert.throws(() => renderConversation(chat, { messages }), ModelError, label);
      continue;
    }
    const rendered = renderConversation(chat, { messages });
    assert.deepEqual([...rendered.ids], ids, label);
    assert.deepEqual([...rendered.supervised], mask, label);
    assert.ok(rendered.endsTurn, label);
  }
});

test("prompts are those of transformers", () => {
  for (const { tokenizer, template, messages, prompt, error } of golden) {
    if (error !== undefined) continue;
    const chat = chatOf(tokenizer === "byte-level" ? byteLevel : sentencepiece, template);
    assert.deepEqual([...renderPrompt(chat, { messages: messages.slice(0, -1) })], prompt, `${tokenizer}, ${template}`);
  }
});

test("the ids up to a turn are the prompt that generates it, whatever the answer begins with", () => {
  for (const template of ["chatml", "llama3", "vicuna", "deepseek", "llama2"]) {
    const chat = chatOf(byteLevel, template);
    for (const answer of ["Sure", " sure", "\nsure", "\n\n  sure", "🙂", "'s"]) {
      const messages = talk("Hello", "Hi ", "and\n", answer);
      const { ids, supervised } = renderConversation(chat, { messages }, { maskHistory: true });
      const start = supervised.indexOf(1);
      assert.deepEqual(
        [...renderPrompt(chat, { messages: messages.slice(0, 3) })],
        [...ids.subarray(0, start)],
        `${template}: ${JSON.stringify(answer)}`,
      );
    }
  }
});

test("only what the assistant says is learned, with the token that ends the turn", () => {
  const chat = chatOf(byteLevel, "chatml");
  const messages = talk("Hello", "Hi!", "Bye", "See you");
  assert.deepEqual(learned(chat, messages), ["Hi!<|im_end|>", "See you<|im_end|>"]);
  assert.deepEqual(learned(chat, messages, { maskHistory: true }), ["See you<|im_end|>"]);
  const { supervised } = renderConversation(chat, { messages }, { trainOnPrompt: true });
  assert.deepEqual([supervised[0], supervised.subarray(1).includes(0)], [0, false]);
});

test("a template that drops old thoughts is followed: what is left of each turn is learned", () => {
  const chat = chatOf(byteLevel, "qwen3");
  const messages = talk("Hello", "<think>\nhm\n</think>\n\nHi!", "Bye", "<think>\nwell\n</think>\n\nSee you");
  assert.deepEqual(learned(chat, messages), ["Hi!<|im_end|>", "<think>\nwell\n</think>\n\nSee you<|im_end|>"]);
});

test("a system message that moves into the last user message does not confuse the turns", () => {
  const chat = chatOf(byteLevel, "mistral");
  const messages = [{ role: "system", content: "Be brief." }, ...talk("Hello", "Hi!", "Bye", "See you")];
  assert.deepEqual(learned(chat, messages), [" Hi!</s>", " See you</s>"]);
});

test("text that looks like a control token stays text and moves no mask", () => {
  const controls = [...byteLevel.controlIds].map((id) => byteLevel.decode([id], { special: true }));
  const piece = fc.oneof(
    fc.constantFrom(...controls, "<|im_", "end|>", "\uFDD0", "\uFDD01\uFDD1", "system\n"),
    fc.string({ unit: "grapheme", maxLength: 6 }),
  );
  const content = fc.array(piece, { minLength: 1, maxLength: 6 }).map((parts) => `a${parts.join("")}z`);
  for (const name of ["chatml", "llama3", "llama2", "zephyr", "phi3", "gemma"]) {
    const chat = chatOf(byteLevel, name);
    const harmless = renderConversation(chat, { messages: talk("aaz", "aaz", "aaz", "aaz") });
    const controlsOf = (ids: Int32Array) => [...ids].filter((id) => byteLevel.controlIds.has(id));
    fc.assert(
      fc.property(fc.tuple(content, content, content, content), (texts) => {
        const { ids, supervised } = renderConversation(chat, { messages: talk(...texts) });
        assert.deepEqual(controlsOf(ids), controlsOf(harmless.ids));
        const answers = learned(chat, talk(...texts));
        assert.equal(answers.length, 2);
        for (const [i, answer] of answers.entries()) assert.ok(answer.includes(texts[2 * i + 1]!), `${name}: ${answer}`);
        assert.equal(supervised[0], 0);
      }),
      { numRuns: process.env.ATTUNE_SOAK ? 10_000 : 150 },
    );
  }
});

test("there is never more than one begin-of-sequence token in front", () => {
  const doubled = new ChatTemplate(`{{ bos_token }}${templates.llama3}`, { roles: byteLevel.roles, origin: "doubled" });
  const chat = { tokenizer: byteLevel, template: doubled };
  const [first, second] = renderPrompt(chat, { messages: talk("Hello") });
  assert.equal(first, byteLevel.bosId);
  assert.notEqual(second, byteLevel.bosId);
  assert.deepEqual(learned(chat, talk("Hello", "Hi")), ["Hi<|eot_id|>"]);
});

test("turns that look alike are found alike: a long chat's are those of chats that end with them", () => {
  const system = { role: "system", content: "Be brief." };
  for (const name of names) {
    if (name === "qwen3") continue; // writes the last answer otherwise
    for (const tokenizer of [byteLevel, sentencepiece]) {
      const chat = chatOf(tokenizer, name);
      const turns = Array.from({ length: 16 }, (_, i) => `${["Hello", " yes", "no\n", "x 7"][i % 4]} ${i}${"\n".repeat(i % 3)}`);
      const messages = name === "gemma" ? talk(...turns) : [system, ...talk(...turns)];
      const whole = learned(chat, messages);
      assert.equal(whole.length, 8, name);
      let answer = 0;
      for (const [i, { role }] of messages.entries())
        if (role === "assistant") assert.equal(learned(chat, messages.slice(0, i + 1)).at(-1), whole[answer++], `${name}, ${i}`);
    }
  }
});

/** Counts how often a template is rendered, and in a text of how many characters. */
function counting(chat: ChatFormat): { chat: ChatFormat; renderings: () => number } {
  let renderings = 0;
  const template = Object.create(chat.template) as ChatTemplate;
  const { source, origin } = chat.template;
  Object.defineProperties(template, { source: { value: source }, origin: { value: origin } });
  template.render = (...args) => {
    renderings++;
    return chat.template.render(...args);
  };
  return { chat: { ...chat, template }, renderings: () => renderings };
}

const longChat = (turns: number, thoughts = "") =>
  talk(...Array.from({ length: turns }, (_, i) => `${i % 2 === 0 ? "" : thoughts}Turn ${i}: ok then`));

test("a long chat takes a few renderings, whatever the template", () => {
  for (const name of names)
    for (const thoughts of ["", "<think>\nhm\n</think>\n\n"]) {
      const { chat, renderings } = counting(chatOf(byteLevel, name));
      const { supervised } = renderConversation(chat, { messages: longChat(200, thoughts) });
      assert.ok(supervised.includes(1));
      assert.ok(renderings() <= 12, `${name} took ${renderings()} renderings`);
    }
  const { chat, renderings } = counting(chatOf(byteLevel, "llama3"));
  assert.equal(learned(chat, longChat(2000)).length, 1000);
  assert.ok(renderings() <= 12);
});

test("a long chat is rendered on a machine that is busy", async () => {
  const busy = Array.from({ length: 2 * availableParallelism() }, () => spawn(process.execPath, ["-e", "for (;;);"]));
  try {
    await new Promise((resolve) => setTimeout(resolve, 300));
    for (const turns of [2000, 600]) {
      assert.equal(learned(chatOf(byteLevel, "qwen3"), longChat(turns)).length, turns / 2);
      assert.ok(renderPrompt(chatOf(byteLevel, "chatml"), { messages: longChat(turns) }).length > 10 * turns);
    }
  } finally {
    for (const each of busy) each.kill("SIGKILL");
  }
});

/** DeepSeek R1's way: thoughts are cut out of all answers, and the prompt opens them. */
const cutting =
  "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content.split('</think>')[-1] }}<|im_end|>{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}";

test("thoughts of the last answer are kept where a template cuts them out, and it is told", () => {
  const chat = { tokenizer: byteLevel, template: new ChatTemplate(cutting, { roles: {}, origin: "own" }) };
  const messages = talk("Q", "<think>\nfirst\n</think>\n\nA", "And?", "<think>\nsecond\n</think>\n\nB");
  assert.deepEqual(learned(chat, messages), ["A<|im_end|>", "second\n</think>\n\nB<|im_end|>"]);
  const { ids, supervised, remarks } = renderConversation(chat, { messages }, { maskHistory: true });
  assert.deepEqual(renderPrompt(chat, { messages: messages.slice(0, 3) }), ids.subarray(0, supervised.indexOf(1)));
  assert.deepEqual(remarks, [
    "the chat template cuts the thoughts out of the last answer; they are kept, as they are to be learned.",
    "the chat template leaves out the thoughts of earlier answers.",
  ]);
  const beside = [...talk("Q"), { role: "assistant", content: "B", reasoning_content: "second" }];
  assert.deepEqual(learned(chat, beside), ["second\n</think>\n\nB<|im_end|>"]);
  assert.deepEqual(renderConversation(chat, { messages: talk("Q", "A") }).remarks, [
    "the last answer has no thoughts, while the chat template's generation prompt opens them with <think>.",
  ]);
  const unlearned = messages.map((message, i) => (i === 3 ? { ...message, isLearned: false } : message));
  assert.deepEqual(learned(chat, unlearned), ["A<|im_end|>"]);
});

test("words that a template leaves out are told by role, and answers to be learned are not left out", () => {
  const only = (roles: string) =>
    `{% for m in messages %}{% if m.role in ${roles} %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endif %}{% endfor %}`;
  const chat = (roles: string) => ({
    tokenizer: byteLevel,
    template: new ChatTemplate(only(roles), { roles: {}, origin: "own" }),
  });
  const messages = [
    { role: "system", content: "Be brief." },
    ...talk("Q", "A"),
    { role: "tool", content: "42" },
    ...talk("P", "B"),
  ];
  assert.deepEqual(renderConversation(chat("['user', 'assistant']"), { messages }).remarks, [
    "the chat template leaves out what the system says.",
    "the chat template leaves out what the tool says.",
  ]);
  assert.deepEqual(renderConversation(chat("['system', 'user', 'assistant', 'tool']"), { messages }).remarks, []);
  assert.throws(() => renderConversation(chat("['user']"), { messages }), {
    code: "DATA",
    message: /leaves out what the assistant says \(message 3\)/,
  });
});

test("answers without an end-of-turn token are told", () => {
  const plain =
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
  const chat = { tokenizer: byteLevel, template: new ChatTemplate(plain, { roles: {}, origin: "plain" }) };
  assert.equal(renderConversation(chat, { messages: talk("Hello", "Hi") }).endsTurn, false);
  assert.deepEqual(learned(chat, talk("Hello", "Hi")), ["Hi\n"]);
});

test("nothing to learn, and words that the template rewrites, are errors", () => {
  const chat = chatOf(byteLevel, "chatml");
  assert.throws(() => renderConversation(chat, { messages: talk("Hello") }), { code: "DATA", message: /no assistant message/ });
  assert.throws(() => renderConversation(chat, { messages: talk("Hello", "  ") }), DataError);
  assert.throws(() => renderConversation(chat, { messages: talk("Hello", "Hi", "Bye", "") }, { maskHistory: true }), DataError);
  const shouting =
    "{% for m in messages %}{{ m.content | upper }}{% if not loop.last %}|{{ messages | length }}{% endif %}{% endfor %}";
  const rewriting = { tokenizer: byteLevel, template: new ChatTemplate(shouting, { roles: {}, origin: "shouting" }) };
  assert.throws(() => renderConversation(rewriting, { messages: talk("Hello", "Hi", "Bye", "You") }), {
    code: "DATA",
    message: /rewrites what the assistant says/,
  });
  assert.equal(names.length, 10);
});
