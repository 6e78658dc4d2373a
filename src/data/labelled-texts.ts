import { checkLength, columnHelp, type Fields, kindOf, mostChars, names, RowFault, type RowFormat, text } from "./row-format.js";

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

export const labelledColumns = {
  /** Where a text and a label are looked for, in this order. */
  text: ["text", "sentence", "content", "prompt", "instruction"],
  label: ["label", "output", "response", "completion"],
  /** A second text that belongs to the first: with it, the first alone means something else. */
  pair: ["text_pair", "sentence2", "text2", "hypothesis", "premise"],
} as const;

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

  read(row, layout, tally) {
    const columns = layout ?? detectColumns(row);
    const parts = [row.text(columns.text), row.optionalText(columns.query)];
    if (!row.has(columns.label)) throw new RowFault(`the column "${columns.label}" is missing. ${columnHelp(row.keys)}`);
    const label = labelOf(row.take(columns.label) ?? null, columns.label);
    checkLength(parts.join("").length, mostChars.text);
    tally.layout([columns.text, columns.label]);
    return { text: parts.filter((part) => part !== "").join("\n"), label };
  },
};

function detectColumns(row: Fields): LabelledLayout {
  const pair = row.findAll(labelledColumns.pair).find((name) => row.isFilled(name));
  if (pair !== undefined)
    throw new RowFault(
      `the column "${pair}" makes pairs of texts, which are not supported. Write both into one column, with words between them.`,
    );
  const column = row.find(labelledColumns.text);
  const label = row.find(labelledColumns.label);
  if (column === undefined || label === undefined)
    throw new RowFault(
      `expected a text (one of ${labelledColumns.text.join(", ")}) and a label (one of ${labelledColumns.label.join(", ")}). ${columnHelp(row.keys)}`,
    );
  return { text: column, label, ...(column.toLowerCase() === "instruction" && { query: "input" }) };
}

function labelOf(value: unknown, column: string): string {
  if (typeof value === "boolean" || Number.isSafeInteger(value)) return String(value);
  if (typeof value !== "string")
    throw new RowFault(`"${column}" has to be a text or a whole number, the name of a class, got ${kindOf(value)}.`);
  const label = text(value, `"${column}"`).trim();
  if (label === "") throw new RowFault(`"${column}" is empty: it has to name a class.`);
  return label;
}
