import { checkLength, columnHelp, type Fields, mostChars, names, RowFault, type RowFormat } from "./row-format.js";

/** A plain text. */
export interface Document {
  readonly text: string;
  /** For error messages, such as `wiki.txt:17`. */
  readonly where: string;
}

export interface TextLayout {
  readonly column: string;
}

/** Where a text is looked for, in this order. */
export const textColumns = ["text", "content"] as const;

/** Rows with a text in one column: LLaMA-Factory's data for `stage: pt`, whose entries of dataset_info.json call it `prompt`. */
export const texts: RowFormat<Document, TextLayout> = {
  layoutOfEntry(entry, where) {
    const { prompt } = names(entry.columns, "columns", ["prompt", "query", "response", "history", "system"], where);
    return prompt === undefined ? undefined : { column: prompt };
  },

  read(row, layout, tally) {
    const column = layout?.column ?? detectColumn(row);
    const text = row.text(column);
    if (text.trim() === "") throw new RowFault(`"${column}" is empty: there is nothing to learn from.`);
    checkLength(text.length, mostChars.document);
    tally.layout([column]);
    return { text };
  },
};

function detectColumn(row: Fields): string {
  const column = row.find(textColumns);
  if (column !== undefined) return column;
  throw new RowFault(`there is no column "text". ${columnHelp(row.keys, ["prompt"])}`);
}
