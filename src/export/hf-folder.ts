import { join } from "node:path";
import { converted } from "../core/linalg.js";
import { unscoped } from "../core/tensor.js";
import { bytesOf } from "../engine/dtype.js";
import { ModelError } from "../errors.js";
import { writeFileAtomic } from "../io/disk.js";
import type { ModelFiles } from "../io/model-files.js";
import { type TensorSource, writeShardedSafetensors } from "../io/safetensors.js";
import type { CausalLM } from "../models/causal-lm.js";
import { transposed } from "../models/load.js";
import { generationConfig } from "../text/generation-config.js";
import type { ChatFormat } from "../text/supervised.js";
import { bytesOfTensor } from "./number-types.js";

const dtypeNames = { f32: "float32", f16: "float16", bf16: "bfloat16" } as const;

/**
 * Writes a model as transformers reads it: config, weights, tokenizer, chat template and generation settings. config.json comes last: a folder
 * without it is not taken for a model. Throws ModelError for what transformers could not know, NoSpaceError.
 */
export async function writeHfFolder(
  folder: string,
  model: CausalLM,
  files: ModelFiles,
  { tokenizer, template }: ChatFormat,
  { type, shardBytes }: { readonly type: keyof typeof dtypeNames; readonly shardBytes: number },
): Promise<void> {
  const { quantization_config: _, torch_dtype: __, ...config } = files.config;
  if (config.rope_factors)
    throw new ModelError(
      `${files.path}: this GGUF file holds the results of Llama 3's RoPE scaling and not its settings, which config.json needs. ` +
        "Give the model's Hugging Face folder as the base.",
    );
  const tensors = [...model.namedParameters()].map(([name, { value, storedShape, isStoredTransposed }]): TensorSource => {
    const data = async () => {
      const copy = unscoped(() => converted(value, type));
      try {
        const bytes = await bytesOfTensor(name, copy, bytesOf(type, value.size));
        return isStoredTransposed ? transposed(bytes, storedShape[1]!, storedShape[0]!, bytesOf(type, 1)) : bytes;
      } finally {
        copy.dispose();
      }
    };
    return { name, dtype: type, shape: storedShape, data };
  });
  await writeShardedSafetensors(folder, tensors, { maxShardBytes: shardBytes, metadata: { format: "pt" } });
  for (const { name, contents } of tokenizer.files())
    if (name !== "chat_template.jinja") await writeFileAtomic(join(folder, name), contents);
  await writeFileAtomic(join(folder, "chat_template.jinja"), template.source);
  const generation = await generationConfig(files, tokenizer);
  await writeFileAtomic(join(folder, generation.name), generation.contents);
  const written = { ...config, tie_word_embeddings: model.isTied, dtype: dtypeNames[type] };
  await writeFileAtomic(join(folder, "config.json"), `${JSON.stringify(written, null, 2)}\n`);
}
