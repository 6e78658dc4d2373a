/** One row of a dataset, rendered and tokenized: what objectives train on. */
export interface Example {
  /** (T) token ids. */
  readonly ids: Int32Array;
  /** (T) 1 where the token is a label: it is predicted from those before it and counts in the loss. The first is never one. */
  readonly supervised: Uint8Array;
  /** For error messages, such as `orders.jsonl:17` or `alpaca.json, row 3`. */
  readonly where: string;
}
