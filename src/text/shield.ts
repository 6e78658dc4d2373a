import type { TemplateDialogue, TemplateMessage } from "./chat-template.js";
import type { Tokenizer } from "./tokenizer/tokenizer.js";

/** What opens and closes an assistant's thoughts in its content. */
export const thoughtTags = ["<think>", "</think>"] as const;

/**
 * Hides the control tokens that occur in a chat's own words from the template and the tokenizer, and shows them again as plain text. Each
 * becomes a number between two noncharacters, which Unicode reserves for inside programs; the noncharacters that mean something here are
 * hidden in the same way. Templates may trim and search messages: all other text stays as it is.
 */
export class Shield {
  readonly #hidden: string[] = [];
  readonly #tags = new Set<number>();
  readonly #tokenizer: Tokenizer;

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** Every text in the chat: contents, thoughts, names, arguments, descriptions of tools. Thoughts' tags in an answer are its author's to write. */
  hideAll({ messages, tools }: TemplateDialogue): TemplateDialogue {
    return {
      messages: messages.map(({ content, ...message }): TemplateMessage => {
        const keptTokens: readonly string[] = message.role === "assistant" ? thoughtTags : [];
        const safe = this.#hideIn(message) as Omit<TemplateMessage, "content">;
        return { ...safe, ...(typeof content === "string" ? { content: this.#hide(content, keptTokens) } : {}) };
      }),
      ...(tools === undefined ? {} : { tools: this.#hideIn(tools) as typeof tools }),
    };
  }

  /** Hides the tags of thoughts in a text from the template alone, which would cut the thoughts out. */
  hideTags(text: string): string {
    return text.replace(/<\/?think>/g, (tag) => {
      const mark = this.#mark(tag);
      this.#tags.add(this.#hidden.length - 1);
      return mark;
    });
  }

  /** What the template made, with the tags that were hidden from it alone. */
  showTags(text: string): string {
    return this.#tags.size === 0 ? text : this.#show(text, (index) => this.#tags.has(index));
  }

  show(text: string): string {
    return this.#show(text, () => true);
  }

  #show(text: string, isShown: (index: number) => boolean): string {
    return text.replace(/\uFDD0(\d+)\uFDD1/g, (mark, index) =>
      isShown(Number(index)) ? (this.#hidden[Number(index)] ?? "") : mark,
    );
  }

  #hideIn(value: unknown): unknown {
    if (typeof value === "string") return this.#hide(value, []);
    if (Array.isArray(value)) return value.map((item) => this.#hideIn(item));
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [this.#hide(key, []), this.#hideIn(item)]));
  }

  #hide(text: string, keptTokens: readonly string[]): string {
    const escaped = text.replace(/[\uFDD0-\uFDD3]/g, (character) => this.#mark(character));
    let safe = "";
    let from = 0;
    for (const piece of this.#tokenizer.split(escaped)) {
      if (piece.id === undefined || keptTokens.includes(piece.text)) continue;
      safe += escaped.slice(from, piece.start) + this.#mark(piece.text);
      from = piece.start + piece.text.length;
    }
    return safe + escaped.slice(from);
  }

  #mark(text: string): string {
    return `\uFDD0${this.#hidden.push(text) - 1}\uFDD1`;
  }
}
