import type { DType } from "../engine/dtype.js";

/** Where the bytes of one tensor lie. Names are Hugging Face's, whatever the format calls them. */
export interface TensorEntry {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly file: string;
  readonly offset: number;
  readonly bytes: number;
  /** Whether the file holds the tensor's bytes as they are and in order, so that they can be read piece by piece. */
  readonly isPlain?: boolean;
}

/**
 * A model on disk, whichever format it has. Opening checks every size against the files' lengths and reads no weights.
 */
export interface ModelFiles {
  /** The folder, or the GGUF file. */
  readonly path: string;
  readonly format: "safetensors" | "gguf";
  /** As in config.json; made from the metadata of a GGUF file. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** The bytes of a tensor, rows in Hugging Face's order (GGUF stores the rows of q and k interleaved for Llama). */
  readTensor(name: string): Promise<Uint8Array>;
  /** Raw metadata of a GGUF file: its tokenizer and chat template are made from it. */
  readonly ggufMetadata?: Readonly<Record<string, unknown>>;
  /** Names of tensors of integers and booleans (masks, position ids), which are not among `tensors`. */
  readonly integers?: readonly string[];
  /** Sentences for the user: what in the files was contradictory and how it was decided, and what was left alone. */
  readonly notices?: readonly string[];
  /** sha256 over config, tensor names, types and shapes, as hex: tells bases apart without reading weights. */
  readonly fingerprint: string;
}
