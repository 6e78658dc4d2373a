import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import type { Message } from "../../src/text/chat-template.js";
import { renderConversation, renderPrompt } from "../../src/text/supervised.js";
import { byteLevel, chatOf, fixtures, sentencepiece, templates } from "../../src/text/testing/byte-level.js";

/** Transformers' ids, masks and prompts for 500 chats under each of ten templates, live. */

const peers = process.env.ATTUNE_PEERS;
const skip = peers === undefined ? "ATTUNE_PEERS names no Python venv with transformers" : false;
const script = fileURLToPath(new URL("../../../test/fixtures/make_chat.py", import.meta.url));

interface Rendered {
  readonly ids?: readonly number[];
  readonly mask?: readonly number[];
  readonly prompt?: readonly number[];
  readonly error?: string;
}

const word = fc.oneof(
  { weight: 6, arbitrary: fc.constantFrom("Hello", "it's", "the", "fox", "DON'T", "naïve", "x1y22", "12345", "don’t", "mañana") },
  { weight: 2, arbitrary: fc.constantFrom("你好世界", "今天天气很好。", "مرحبا", "ไทย", "한국어", "é́") },
  { weight: 2, arbitrary: fc.constantFrom("🙂", "👩‍👩‍👧", "🇫🇷", "∑∂", "—", "…") },
  { weight: 1, arbitrary: fc.string({ unit: "grapheme", minLength: 1, maxLength: 5 }) },
);
const gap = fc.oneof(
  { weight: 8, arbitrary: fc.constant(" ") },
  { weight: 2, arbitrary: fc.constantFrom("\n", "  ", "\n\n", "\t", " \n ", "") },
);
const prose = fc
  .array(fc.tuple(word, gap), { minLength: 1, maxLength: 12 })
  .map((parts) => parts.flat().join(""))
  // Answers that begin with a blank are cut at the turn here, and not there: see renderConversation. Marks that could make a
  // control token, and control characters that Python alone counts as blanks, are left out.
  .map((text) => `A${text.replace(/[<>[\]{}]|(?![\n\t])\p{Cc}/gu, "").trimEnd()}`);
const chats = fc
  .record({ system: fc.option(prose), turns: fc.array(fc.tuple(prose, prose), { minLength: 1, maxLength: 6 }) })
  .map(({ system, turns }): Message[] => [
    ...(system === null ? [] : [{ role: "system", content: system }]),
    ...turns.flatMap(([question, answer]) => [
      { role: "user", content: question },
      { role: "assistant", content: answer },
    ]),
  ]);

for (const [name, tokenizer] of [
  ["byte-level", byteLevel],
  ["sentencepiece", sentencepiece],
] as const) {
  test(`500 chats under ten templates, ${name} tokenizer`, { skip }, () => {
    const sample = fc.sample(chats, { numRuns: 500, seed: 11 });
    const cases = Object.entries(templates).flatMap(([template, source]) =>
      sample.map((messages) => ({ name: template, template: source, messages })),
    );
    const input = JSON.stringify({ tokenizer: `${fixtures}${name}`, cases });
    const python = spawnSync(join(peers!, "bin", "python"), [script, "--render"], {
      input,
      encoding: "utf8",
      maxBuffer: 2 ** 30,
    });
    assert.equal(python.status, 0, python.stderr);
    const expected = JSON.parse(python.stdout) as Rendered[];
    assert.equal(expected.length, cases.length);

    let compared = 0;
    for (const [i, { ids, mask, prompt, error }] of expected.entries()) {
      const { name: template, messages } = cases[i]!;
      const chat = chatOf(tokenizer, template);
      const label = `${template}: ${JSON.stringify(messages)}`;
      if (error !== undefined) {
        assert.throws(() => renderConversation(chat, { messages }), { code: "MODEL" }, label);
        continue;
      }
      const rendered = renderConversation(chat, { messages });
      assert.deepEqual([...rendered.ids], ids, label);
      assert.deepEqual([...rendered.supervised], mask, label);
      assert.deepEqual([...renderPrompt(chat, { messages: messages.slice(0, -1) })], prompt, label);
      compared++;
    }
    assert.ok(compared > 4500, `only ${compared} were compared`);
  });
}
