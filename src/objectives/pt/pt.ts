import { z } from "zod";
import { loadRows, tokenizeRows } from "../../data/dataset.js";
import type { Example } from "../../data/example.js";
import { type Document, texts } from "../../data/texts.js";
import { DataError } from "../../errors.js";
import { asCausalLM } from "../../models/causal-lm.js";
import type { Tokenizer } from "../../text/tokenizer.js";
import { nextToken } from "../next-token.js";
import { defineObjective } from "../objective.js";

/**
 * Continued pre-training on plain text: every token of every document is learned, and nothing is cut off. Documents fill sequences of
 * `cutoff_len`, whole where they fit, and never see each other. LLaMA-Factory (data/processor/pretrain.py) strings all documents together
 * instead, cuts where a sequence is full, and drops the last part.
 */
export const pt = defineObjective<Example, Record<never, never>>({
  name: "pt",
  summary: "goes on learning from plain text, every token of it",
  config: z.strictObject({}),
  usedBy: "chat",
  packs: true,

  check(model) {
    asCausalLM(model, "stage pt");
  },

  async read(dataset, { files, tokenize, tokenizer, warn }) {
    const { rows, notices } = await loadRows({ dataset, ...files }, texts);
    for (const message of notices) warn(message);
    const { cutoffLen, onBadRow = "error" } = tokenize;
    const tokenized = await tokenizeRows(rows, onBadRow, (document) => {
      const pieces = piecesOf(document, tokenizer, cutoffLen);
      if (pieces.length === 0) throw new DataError("the text has no tokens.");
      return pieces;
    });
    for (const message of tokenized.notices) warn(message);
    return tokenized.examples;
  },

  task: () => nextToken,
});

/**
 * A document between its begin and end token, in pieces of at most `length` tokens. Where a model has no begin token, the end token of the
 * document before it is what it begins with. Each piece after the first begins with the last token of the one before: so every token is
 * predicted once.
 */
export function piecesOf({ text, where }: Document, tokenizer: Tokenizer, length: number): Example[] {
  const end = tokenizer.eosId === undefined ? [] : [tokenizer.eosId];
  const begin = tokenizer.addsBos ? [tokenizer.bosId!] : end;
  const ids = Int32Array.from([...begin, ...tokenizer.encode(text, { special: false }), ...end]);
  const pieces: Example[] = [];
  for (let from = 0; from < ids.length - 1; from += length - 1) {
    const piece = ids.slice(from, from + length);
    pieces.push({ ids: piece, supervised: new Uint8Array(piece.length).fill(1, 1), where });
  }
  return pieces;
}
