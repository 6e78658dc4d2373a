import type { ChatFormat } from "../text/supervised.js";
import { chooseTemplate } from "../text/templates.js";
import { byteTokenizer } from "../text/tokenizer/byte-tokenizer.js";
import type { Tokenizer } from "../text/tokenizer/tokenizer.js";
import type { Example } from "./example.js";

/** A row as the model sees it: the pieces joined are the whole text, control tokens included. */
export interface PreviewRow {
  readonly where: string;
  readonly tokens: number;
  readonly supervisedTokens: number;
  readonly pieces: readonly PreviewPiece[];
}

export interface PreviewPiece {
  readonly text: string;
  readonly supervised: boolean;
}

/** The texts are the data's own: escape them for a terminal. */
export function previewRow({ ids, supervised, where }: Example, tokenizer: Tokenizer): PreviewRow {
  const pieces: PreviewPiece[] = [];
  for (let from = 0; from < ids.length; ) {
    const label = supervised[from]!;
    const other = supervised.indexOf(1 - label, from);
    const to = other < 0 ? ids.length : other;
    pieces.push({ text: tokenizer.decode(ids.subarray(from, to), { special: true }), supervised: label === 1 });
    from = to;
  }
  const supervisedTokens = supervised.reduce((total, label) => total + label, 0);
  return { where, tokens: ids.length, supervisedTokens, pieces };
}

/** For looking at data without a model: ChatML, one token for each byte. */
export function byteChat(): ChatFormat {
  const tokenizer = byteTokenizer();
  return { tokenizer, template: chooseTemplate(tokenizer).template };
}
