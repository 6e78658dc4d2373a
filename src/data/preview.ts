import type { ChatFormat } from "../text/supervised.js";
import { chooseTemplate } from "../text/templates.js";
import { byteTokenizer } from "../text/tokenizer/byte-tokenizer.js";
import type { Tokenizer } from "../text/tokenizer/tokenizer.js";
import type { Example, LabelledExample } from "./example.js";

/** A row as the model sees it: the pieces joined are the whole text, control tokens included. */
export interface PreviewRow {
  readonly where: string;
  readonly tokens: number;
  readonly supervisedTokens: number;
  readonly pieces: readonly PreviewPiece[];
  /** The class that it belongs to, where it has one. */
  readonly label?: string;
}

export interface PreviewPiece {
  readonly text: string;
  readonly supervised: boolean;
}

/** A row of tokens, with what is learned of it where that is tokens. */
export type PreviewedExample = Pick<Example, "ids" | "where"> &
  Partial<Pick<Example, "supervised"> & Pick<LabelledExample, "label">>;

/** How one example looks to the model. The texts come from the data as they are: escape them for a terminal. */
export function previewRow({ ids, supervised: labels, where, label }: PreviewedExample, tokenizer: Tokenizer): PreviewRow {
  const supervised = labels ?? new Uint8Array(ids.length);
  const pieces: PreviewPiece[] = [];
  for (let from = 0; from < ids.length; ) {
    const label = supervised[from]!;
    const other = supervised.indexOf(1 - label, from);
    const to = other < 0 ? ids.length : other;
    pieces.push({ text: tokenizer.decode(ids.subarray(from, to), { special: true }), supervised: label === 1 });
    from = to;
  }
  const supervisedTokens = supervised.reduce((total, label) => total + label, 0);
  return { where, tokens: ids.length, supervisedTokens, pieces, ...(label !== undefined && { label }) };
}

/** For looking at data without a model: ChatML, one token for each byte. */
export function byteChat(): ChatFormat {
  const tokenizer = byteTokenizer();
  return { tokenizer, template: chooseTemplate(tokenizer).template };
}
