/** One row of a dataset: all that planning and memory need to know of it. */
export interface Row {
  /** For error messages, such as `orders.jsonl:17` or `alpaca.json, row 3`. */
  readonly where: string;
  /** How many tokens it takes through the model. */
  readonly tokens: number;
}

/** A row of tokens, some or all of which are to be predicted. */
export interface Example extends Row {
  /** (T) token ids. */
  readonly ids: Int32Array;
  /** (T) 1 where the token is a label: it is predicted from those before it and counts in the loss. The first is never one. */
  readonly supervised: Uint8Array;
}

/** A row that belongs to a class. */
export interface LabelledExample extends Row {
  /** (T) token ids. */
  readonly ids: Int32Array;
  readonly label: string;
}
