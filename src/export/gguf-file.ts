import { basename } from "node:path";
import { bytesOf } from "../engine/dtype.js";
import { ModelError } from "../errors.js";
import { ggufShape } from "../io/gguf/config.js";
import { ggufModuleName, type Heads, interleavedHeads, reorderRows, ropeFactorsName } from "../io/gguf/names.js";
import { type GgufTensorSource, writeGguf } from "../io/gguf/writer.js";
import type { ModelFiles } from "../io/model-files.js";
import type { LanguageModel } from "../models/language-model.js";
import type { ChatFormat } from "../text/supervised.js";
import { ggufVocabulary } from "../text/tokenizer/gguf-vocabulary.js";
import type { NumberType } from "./choices.js";
import { bytesOfTensor, ggufFileTypes } from "./number-types.js";

const quantizationVersion = 2; // of ggml's block layouts

/**
 * Writes a model, whose matrices are stored as they are to be written, as a GGUF file that llama.cpp reads: the training's template is its chat
 * template. Source: llama.cpp, convert_hf_to_gguf.py. Throws ModelError for a model that GGUF has no names for, NoSpaceError.
 */
export async function writeGgufModel(
  path: string,
  model: LanguageModel,
  files: ModelFiles,
  { tokenizer, template }: ChatFormat,
  type: NumberType,
): Promise<void> {
  const rows = model.shape.vocabSize;
  const { architecture, metadata, ropeFactors } = ggufShape(files.config, rows, files.path);
  const tensors: GgufTensorSource[] = [...model.namedParameters()].map(([name, { value }]) => {
    const { dtype, shape } = value;
    const heads = headsOf(name, files.config);
    const data = async () => {
      const bytes = await bytesOfTensor(name, value, bytesOf(dtype, value.size));
      return heads === undefined ? bytes : reorderRows(bytes, shape[0]!, heads, "gguf");
    };
    return { name: ggufTensorName(name, files.path), dtype, shape, data };
  });
  if (ropeFactors !== undefined)
    tensors.unshift({
      name: ropeFactorsName,
      dtype: "f32",
      shape: [ropeFactors.length],
      data: () => new Uint8Array(ropeFactors.buffer),
    });
  await writeGguf(
    path,
    {
      "general.architecture": { string: architecture },
      "general.type": { string: "model" },
      "general.name": { string: basename(files.path).replace(/\.gguf$/, "") },
      "general.file_type": { u32: ggufFileTypes[type] },
      "general.quantization_version": { u32: quantizationVersion },
      ...metadata,
      ...ggufVocabulary(tokenizer, { rows, template: template.source, where: files.path }),
    },
    tensors,
  );
}

/** How many heads the rows of a tensor belong to, if GGUF interleaves them. */
export function headsOf(tensor: string, config: Readonly<Record<string, unknown>>): number | undefined {
  const heads = Number(config.num_attention_heads);
  const all: Heads = {
    model_type: String(config.model_type),
    num_attention_heads: heads,
    num_key_value_heads: Number(config.num_key_value_heads ?? heads),
  };
  return interleavedHeads(tensor.replace(/\.(?:weight|bias)$/, ""), all);
}

/** llama.cpp's name of a tensor. Throws ModelError if it has none. */
export function ggufTensorName(name: string, where: string): string {
  const [, path, kind] = /^(.+)\.(weight|bias)$/.exec(name) ?? [];
  const module = path && ggufModuleName(path);
  if (!module)
    throw new ModelError(`${where}: GGUF has no name for the tensor ${name}, so llama.cpp would not know what it is for.`);
  return `${module}.${kind}`;
}
