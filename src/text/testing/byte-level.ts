import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { ChatTemplate, type Message } from "../chat-template.js";
import { loadTokenizerFolder } from "../load-tokenizer.js";
import type { ChatFormat } from "../supervised.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";

/** Made by test/fixtures/make_chat.py. */
export const fixtures = fileURLToPath(new URL("../../../../test/fixtures/chat/", import.meta.url));

export interface GoldenCase {
  readonly tokenizer: "byte-level" | "sentencepiece";
  readonly template: string;
  readonly messages: readonly Message[];
  /** What transformers gives, or that the template refuses the messages. */
  readonly ids?: readonly number[];
  readonly mask?: readonly number[];
  readonly prompt?: readonly number[];
  readonly error?: string;
}

export function readFixture<T>(name: string): T {
  return JSON.parse(readFileSync(`${fixtures}${name}`, "utf8")) as T;
}

export const templates = readFixture<Record<string, string>>("templates.json");
export const byteLevel: Tokenizer = await loadTokenizerFolder(`${fixtures}byte-level`);
export const sentencepiece: Tokenizer = await loadTokenizerFolder(`${fixtures}sentencepiece`);

export function chatOf(tokenizer: Tokenizer, template: string): ChatFormat {
  const source = templates[template];
  if (source === undefined) throw new Error(`no template ${template}`);
  return { tokenizer, template: new ChatTemplate(source, { roles: tokenizer.roles, origin: template }) };
}

/** For tests: user, assistant, user … from texts. */
export function talk(...texts: string[]): Message[] {
  return texts.map((content, i) => ({ role: i % 2 === 0 ? "user" : "assistant", content }));
}
