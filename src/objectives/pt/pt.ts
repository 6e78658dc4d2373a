import { z } from "zod";
import { loadRows, tokenizeRows } from "../../data/dataset.js";
import type { Example } from "../../data/example.js";
import { texts } from "../../data/texts.js";
import { DataError } from "../../errors.js";
import { asCausalLM } from "../../models/causal-lm.js";
import type { Tokenizer } from "../../text/tokenizer/tokenizer.js";
import { NextTokenConfig, nextTokenTask } from "../next-token.js";
import { defineObjective } from "../objective.js";

export const PtConfig = NextTokenConfig.extend({
  split_special_tokens: z
    .boolean()
    .default(false)
    .describe(
      "spell out control tokens that stand in the texts (`<|im_end|>`), so that they are read as text; conversations and labelled texts always are",
    ),
});
export type PtConfig = z.output<typeof PtConfig>;

/**
 * Continued pre-training on plain text: every token of every document is learned, and nothing is cut off. Control tokens in a text are read as
 * such, as transformers and LLaMA-Factory read them, unless `split_special_tokens` says otherwise. Documents fill sequences of
 * `cutoff_len`, whole where they fit, and never see each other. LLaMA-Factory (data/processor/pretrain.py) strings all documents together
 * instead, cuts where a sequence is full, and drops the last part.
 */
export const pt = defineObjective<Example, PtConfig>({
  name: "pt",
  summary: "goes on learning from plain text, every token of it",
  config: PtConfig,
  usedBy: "chat",
  measures: ["compute_accuracy"],
  packs: true,

  check(model) {
    asCausalLM(model, `stage ${this.name}`);
  },

  async read(dataset, { files, tokenize, tokenizer, warn }, { split_special_tokens }) {
    const { rows, notices } = await loadRows({ dataset, ...files }, texts);
    for (const message of notices) warn(message);
    const { cutoffLen, onBadRow = "error" } = tokenize;
    let withControls = 0;
    const tokenized = await tokenizeRows(rows, onBadRow, ({ text, where }) => {
      const pieces = piecesOf(tokenizer.encode(text, { special: !split_special_tokens }), where, tokenizer, cutoffLen);
      if (pieces.length === 0) throw new DataError("the text has no tokens.");
      if (tokenizer.split(text).some(({ id }) => id !== undefined)) withControls++;
      return pieces;
    });
    for (const message of tokenized.notices) warn(message);
    if (withControls > 0)
      warn(
        split_special_tokens
          ? `${withControls} of ${rows.length} texts hold control tokens; they are spelled out, as split_special_tokens says.`
          : `${withControls} of ${rows.length} texts hold control tokens, which are read as such; \`split_special_tokens: true\` spells them out.`,
      );
    return tokenized.examples;
  },

  task: (_examples, config) => nextTokenTask(config),
});

/**
 * The ids of a document between its begin and end token, in pieces of at most `length` tokens. Where a model has no begin token, the end token of the
 * document before it is what it begins with. Each piece after the first begins with the last token of the one before: so every token is
 * predicted once.
 */
export function piecesOf(text: Int32Array, where: string, tokenizer: Tokenizer, length: number): Example[] {
  const end = tokenizer.eosId === undefined ? [] : [tokenizer.eosId];
  const begin = tokenizer.addsBos ? [tokenizer.bosId!] : end;
  const ids = new Int32Array(begin.length + text.length + end.length);
  ids.set(begin);
  ids.set(text, begin.length);
  ids.set(end, begin.length + text.length);
  const pieces: Example[] = [];
  for (let from = 0; from < ids.length - 1; from += length - 1) {
    const piece = ids.slice(from, from + length);
    pieces.push({ ids: piece, supervised: new Uint8Array(piece.length).fill(1, 1), where, tokens: piece.length });
  }
  return pieces;
}
