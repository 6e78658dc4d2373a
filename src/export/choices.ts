/**
 * The choices that an export offers. They have a file of their own so that `attune --help` can list them without loading the
 * engine.
 */

/** Where a model can leave to: a Hugging Face folder, a GGUF file, a GGUF file of the LoRA adapter alone, or a folder for Ollama. */
export const exportTargets = ["hf", "gguf", "gguf-lora", "ollama"] as const;
/** One of `exportTargets`. */
export type ExportTarget = (typeof exportTargets)[number];

/** How the weights of an exported model are stored. */
export const numberTypes = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"] as const;
/** One of `numberTypes`. */
export type NumberType = (typeof numberTypes)[number];

/** What an export writes of itself, beside what it exported. */
export const receiptName = "export_receipt.json";
