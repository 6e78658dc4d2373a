import { DataError } from "../errors.js";
import { columnHelp, formatEach, kindOf, names, optionalText, RowFault, type RowFormat, text } from "./row-format.js";

/** A text and the class that it belongs to. */
export interface LabelledText {
  readonly text: string;
  readonly label: string;
  /** For error messages, such as `reviews.jsonl:17`. */
  readonly where: string;
}

export interface LabelledLayout {
  readonly text: string;
  /** A second text column, joined to the first by a line break: Alpaca's `input`. */
  readonly query?: string;
  readonly label: string;
}

const textColumns = ["text", "sentence", "content", "prompt", "instruction"];
const labelColumns = ["label", "output", "response", "completion"];
/** A second text that belongs to the first: with it, the first alone means something else. */
const pairColumns = ["text_pair", "sentence2", "text2", "hypothesis"];

/**
 * Rows with a text and a label: GLUE's and Hugging Face's column names, Alpaca's, or those that `prompt`, `query` and `response` name in an
 * entry of dataset_info.json. A label is text, a whole number, or true or false.
 */
export const labelledTexts: RowFormat<LabelledText, LabelledLayout> = {
  layoutOfEntry(entry, where) {
    const columns = names(entry.columns, "columns", ["prompt", "query", "response"], where);
    if (entry.columns === undefined) return undefined;
    const { prompt = "text", query, response = "label" } = columns;
    return { text: prompt, label: response, ...(query !== undefined && { query }) };
  },

  detectLayout({ value, where }) {
    const pair = pairColumns.find((name) => name in value);
    if (pair !== undefined)
      throw new DataError(
        `${where}: the column "${pair}" makes pairs of texts, which are not supported. Write both into one column, with words between them.`,
      );
    const column = textColumns.find((name) => name in value);
    const label = labelColumns.find((name) => name in value);
    if (column === undefined || label === undefined)
      throw new DataError(
        `${where}: expected a text (one of ${textColumns.join(", ")}) and a label (one of ${labelColumns.join(", ")}). ${columnHelp(Object.keys(value))}`,
      );
    return { text: column, label, ...(column === "instruction" && { query: "input" }) };
  },

  formatRows(file, layout) {
    const formatted = formatEach(file, ({ value, where }): LabelledText => {
      for (const name of [layout.text, layout.label])
        if (value[name] === undefined) throw new RowFault(`the column "${name}" is missing. ${columnHelp(Object.keys(value))}`);
      const parts = [text(value[layout.text], `"${layout.text}"`), optionalText(value, layout.query)];
      return { text: parts.filter((part) => part !== "").join("\n"), label: labelOf(value[layout.label], layout.label), where };
    });
    return { ...formatted, notices: [] };
  },
};

function labelOf(value: unknown, column: string): string {
  if (typeof value === "boolean" || Number.isSafeInteger(value)) return String(value);
  if (typeof value !== "string")
    throw new RowFault(`"${column}" has to be a text or a whole number, the name of a class, got ${kindOf(value)}.`);
  const label = text(value, `"${column}"`).trim();
  if (label === "") throw new RowFault(`"${column}" is empty: it has to name a class.`);
  return label;
}
