import { stat } from "node:fs/promises";
import { join } from "node:path";
import { ModelError } from "../errors.js";
import { namesIn } from "./disk.js";
import { openGguf } from "./gguf/gguf.js";
import { openModelFolder, pickleRefused } from "./hf-folder.js";
import type { ModelFiles } from "./model-files.js";

/**
 * Opens a local model: a GGUF file, a Hugging Face folder, or a folder with exactly one GGUF file.
 * Throws ModelError that says what was found instead.
 */
export async function openModel(path: string): Promise<ModelFiles> {
  const stats = await stat(path).catch((error: unknown) => {
    throw new ModelError(`${path}: no such file or folder.`, { cause: error });
  });
  if (stats.isFile()) {
    if (path.endsWith(".gguf")) return await openGguf(path);
    if (/\.(?:bin|pt|pth|ckpt|pkl|pickle)$/.test(path)) throw pickleRefused(path);
    const hint = path.endsWith(".safetensors") ? " Name its folder, which also has config.json." : "";
    throw new ModelError(`${path}: expected a GGUF file or a folder with config.json and safetensors.${hint}`);
  }
  const names = await namesIn(path);
  if (names.includes("config.json")) return await openModelFolder(path);
  const ggufs = names.filter((name) => name.endsWith(".gguf")).sort();
  if (ggufs.length === 1) return await openGguf(join(path, ggufs[0]!));
  if (ggufs.length > 1)
    throw new ModelError(`${path}: has ${ggufs.length} GGUF files; name one: ${ggufs.slice(0, 10).join(", ")}.`);
  if (names.includes("adapter_config.json")) {
    throw new ModelError(`${path}: an adapter, not a base model. Give its base as the model and this as the adapter.`);
  }
  throw new ModelError(`${path}: no model: expected config.json with safetensors, or one GGUF file.`);
}
