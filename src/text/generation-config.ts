import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { systemErrorCode } from "../io/disk.js";
import type { ModelFiles } from "../io/model-files.js";
import type { TextFile, Tokenizer } from "./tokenizer/tokenizer.js";

/** generation_config.json of a model that leaves: the base's own or, if it has none, one with the tokens that begin a text and end an answer. */
export async function generationConfig({ path, format }: ModelFiles, tokenizer: Tokenizer): Promise<TextFile> {
  const name = "generation_config.json";
  const ends = { bos_token_id: tokenizer.bosId, eos_token_id: [...tokenizer.stopIds] };
  const made = { name, contents: `${JSON.stringify(ends, null, 2)}\n` };
  if (format === "gguf") return made;
  try {
    return { name, contents: await readFile(join(path, name), "utf8") };
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT") return made;
    throw error;
  }
}
