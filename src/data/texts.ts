import { DataError } from "../errors.js";
import { columnHelp, formatEach, names, RowFault, type RowFormat, text } from "./row-format.js";

/** A plain text. */
export interface Document {
  readonly text: string;
  /** For error messages, such as `wiki.txt:17`. */
  readonly where: string;
}

export interface TextLayout {
  readonly column: string;
}

const textColumns = ["text", "content"];

/** Rows with a text in one column: LLaMA-Factory's data for `stage: pt`, whose entries of dataset_info.json call it `prompt`. */
export const texts: RowFormat<Document, TextLayout> = {
  layoutOfEntry(entry, where) {
    const { prompt } = names(entry.columns, "columns", ["prompt", "query", "response", "history", "system"], where);
    return prompt === undefined ? undefined : { column: prompt };
  },

  detectLayout({ value, where }) {
    const column = textColumns.find((name) => name in value);
    if (column !== undefined) return { column };
    throw new DataError(`${where}: there is no column "text". ${columnHelp(Object.keys(value), ["prompt"])}`);
  },

  formatRows(file, { column }) {
    const formatted = formatEach(file, ({ value, where }): Document => {
      if (value[column] === undefined)
        throw new RowFault(`the column "${column}" is missing. ${columnHelp(Object.keys(value), ["prompt"])}`);
      const document = { text: text(value[column], `"${column}"`), where };
      if (document.text.trim() === "") throw new RowFault(`"${column}" is empty: there is nothing to learn from.`);
      return document;
    });
    return { ...formatted, notices: [] };
  },
};
