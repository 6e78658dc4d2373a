/** Conversations with the tiny model: what is computed again, and by which adapter. */
import assert from "node:assert/strict";
import { join } from "node:path";
import test from "node:test";
import { Chat, ClosedError, type Message } from "../src/index.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import { loadTokenizer } from "../src/text/load-tokenizer.js";
import { renderPrompt } from "../src/text/supervised.js";
import { chooseTemplate } from "../src/text/templates.js";
import { engine } from "./support/gradient-check.js";
import { tinyLlama } from "./support/tiny-llama.js";

const model = join(tinyLlama, "tied");
const adapter = new Map([
  ["trained", join(tinyLlama, "adapter-final")],
  ["other", join(tinyLlama, "../tiny-adapterhub/pfeiffer")],
]);
const tokenizer = await loadTokenizer(await openModelFolder(model));
const format = { tokenizer, template: chooseTemplate(tokenizer, { name: undefined, source: undefined }).template };
/** Exact products: in bf16 they round differently by how many rows there are, and what is drawn may differ. */
const opened = { model, adapter, compute: "f32" } as const;
const options = { maxNewTokens: 8 };

const ask = (content: string): Message[] => [{ role: "user", content }];

async function all(pieces: AsyncIterable<string>): Promise<string> {
  let text = "";
  for await (const piece of pieces) text += piece;
  return text;
}

/** The answer of a chat that has seen nothing yet. */
async function fresh(messages: readonly Message[], name: string | null, more = {}): Promise<string> {
  const chat = await Chat.open(opened);
  chat.useAdapter(name);
  const answer = await all(chat.reply(messages, { ...options, ...more }));
  chat.close();
  return answer;
}

/** How many tokens go through the model meanwhile. */
async function tokensComputed(body: () => Promise<unknown>): Promise<number> {
  const { embedding } = engine;
  let count = 0;
  engine.embedding = (ids, ...others) => {
    count += ids.length;
    embedding.call(engine, ids, ...others);
  };
  try {
    await body();
  } finally {
    engine.embedding = embedding;
  }
  return count;
}

test("each turn computes its own tokens only, and answers as a chat that begins with the whole conversation", async () => {
  const chat = await Chat.open(opened);
  const messages: Message[] = [];
  let known = 0;
  for (const content of ["cat", "what?", "hello"]) {
    messages.push(...ask(content));
    const prompt = renderPrompt(format, { messages });
    let answer = "";
    const computed = await tokensComputed(async () => {
      answer = await all(chat.reply(messages, options));
    });
    assert.equal(answer, await fresh(messages, "trained"));
    const answerTokens = tokenizer.encode(answer, { special: false }).length;
    assert.equal(answerTokens, options.maxNewTokens, "an answer whose tokens are those of its text");
    assert.equal(computed, prompt.length - known + answerTokens - 1);
    messages.push({ role: "assistant", content: answer });
    known = prompt.length + answerTokens - 1;
  }
  chat.close();
});

test("a reply keeps the adapter that it began with, whatever is put to use meanwhile", async () => {
  const question = ask("Where is the hen?");
  const names = ["trained", "other", null] as const;
  const alone = new Map<string | null, string>();
  for (const name of names) alone.set(name, await fresh(question, name));
  assert.equal(new Set(alone.values()).size, 3);
  for (const first of names)
    for (const second of names) {
      const chat = await Chat.open(opened);
      chat.useAdapter(first);
      const reply = chat.reply(question, options);
      let answer = (await reply.next()).value as string;
      chat.useAdapter(second);
      const meanwhile = all(chat.reply(question, options));
      answer += await all(reply);
      assert.equal(answer, alone.get(first), `${first}, then ${second}`);
      assert.equal(await meanwhile, alone.get(second), `${second}, after ${first}`);
      chat.useAdapter(first);
      const late = chat.reply(question, options); // begun now, though nobody has asked it for anything
      chat.useAdapter(second);
      assert.equal(await all(late), alone.get(first));
      chat.close();
    }
});

test("several replies at once are what each is by itself", async () => {
  const chat = await Chat.open(opened);
  const cases = Array.from({ length: 24 }, (_, seed) => ({
    messages: ask(`Where is number ${seed % 7}?`),
    name: [null, "trained", "other"][seed % 3]!,
    sampling: { temperature: seed % 2, seed },
  }));
  const replies = cases.map(({ messages, name, sampling }) => {
    chat.useAdapter(name);
    return all(chat.reply(messages, { ...options, ...sampling }));
  });
  for (const [i, answer] of (await Promise.all(replies)).entries()) {
    const { messages, name, sampling } = cases[i]!;
    assert.equal(answer, await fresh(messages, name, sampling), `reply ${i}`);
  }
  chat.close();
});

test("an answer that is left early, or fails, leaves the chat as it was", async () => {
  const chat = await Chat.open(opened);
  const question = ask("Where is the yak?");
  for await (const _ of chat.reply(question, options)) break;
  await assert.rejects(all(chat.reply(ask("long ".repeat(100)), options)), {
    code: "CONFIG",
    message: /fit with the answer: shorten it/,
  });
  assert.throws(() => chat.useAdapter("nobody"), /there is no adapter "nobody"; there are: trained, other/);
  assert.equal(chat.adapter, "trained");
  const controller = new AbortController();
  controller.abort();
  assert.equal(await all(chat.reply(question, { ...options, signal: controller.signal })), "");
  assert.equal(await all(chat.reply(question, options)), await fresh(question, "trained"));
  chat.close();
});

test("a closed chat says so, to an answer under way and to every later call", async () => {
  const chat = await Chat.open(opened);
  const reply = chat.reply(ask("Where is the cat?"), { maxNewTokens: 64 });
  await reply.next();
  chat.close();
  await assert.rejects(all(reply), ClosedError);
  await assert.rejects(all(chat.reply(ask("Where is the cat?"))), ClosedError);
  await assert.rejects(chat.answerAll([ask("Where is the cat?")]), ClosedError);
  assert.throws(() => chat.useAdapter("other"), ClosedError);
  chat.close();
});

test("a chat tells how an answer ended, and what it has loaded", async () => {
  const chat = await Chat.open(opened);
  const { contextTokens, methods, weights, compute } = chat.facts;
  assert.deepEqual(
    [weights, compute, [...methods]],
    [
      "f32",
      "f32",
      [
        ["trained", "lora"],
        ["other", "adapter"],
      ],
    ],
  );
  assert.deepEqual(chat.thoughts, { areKnown: false, areOpen: false });
  const ended = async (question: string, more: Parameters<typeof chat.reply>[1]) => {
    const reply = chat.reply(ask(question), more);
    for (;;) {
      const next = await reply.next();
      if (next.done === true) return next.value;
    }
  };
  assert.deepEqual(await ended("Where is the hen?", { maxNewTokens: 3 }), { finished: "length", tokens: 3 });
  const room = contextTokens - renderPrompt(format, { messages: ask("Where is the hen?") }).length + 1; // the last token is not computed on
  chat.useAdapter(null);
  assert.deepEqual(await ended("Where is the hen?", { maxNewTokens: 10 * contextTokens }), { finished: "context", tokens: room });
  const aborted = new AbortController();
  aborted.abort();
  assert.deepEqual(await ended("Where?", { signal: aborted.signal }), { finished: "aborted", tokens: 0 });
  chat.close();
});
