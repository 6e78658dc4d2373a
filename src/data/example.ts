/** One row of a dataset as an objective trains on it. */
export interface TokenizedRow {
  /** (T) token ids. */
  readonly ids: Int32Array;
  /** For error messages, such as `orders.jsonl:17` or `alpaca.json, row 3`. */
  readonly where: string;
}

/** A row whose tokens are to be predicted. */
export interface Example extends TokenizedRow {
  /** (T) 1 where the token is a label: it is predicted from those before it and counts in the loss. The first is never one. */
  readonly supervised: Uint8Array;
}

/** A row that belongs to a class. */
export interface LabelledExample extends TokenizedRow {
  readonly label: string;
}
