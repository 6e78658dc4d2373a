import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { Rng } from "../core/rng.js";
import { SymbolicDevice } from "../core/symbolic.js";
import { sizeOf } from "../core/tensor.js";
import { writeFileAtomic } from "../io/disk.js";
import { type TensorSource, writeShardedSafetensors } from "../io/safetensors.js";
import { byteTokenizer } from "../text/tokenizer/byte-tokenizer.js";
import { buildModel } from "./load.js";

/**
 * Writes a Hugging Face folder of the shape that `config` describes, with random weights: matrices normal with deviation 0.02 (as Llama
 * starts), norms one, biases zero. One tensor at a time, so that a model larger than memory can be made. With the vocabulary of the byte tokenizer
 * (V = 259) that tokenizer is written as well. Throws ModelError for a config that attune cannot run, NoSpaceError.
 */
export async function writeRandomModel(folder: string, config: Readonly<Record<string, unknown>>, seed: number): Promise<void> {
  const model = buildModel(new SymbolicDevice(), config, folder);
  const sources = [...model.namedParameters()].map(
    ([name, { storedShape: shape }]): TensorSource => ({
      name,
      dtype: "f32",
      shape,
      data: () => {
        const rng = Rng.for(seed, name);
        const vector = name.endsWith(".bias") ? 0 : 1;
        const values = Float32Array.from({ length: sizeOf(shape) }, () => (shape.length === 1 ? vector : 0.02 * rng.normal()));
        return new Uint8Array(values.buffer);
      },
    }),
  );
  await mkdir(folder, { recursive: true });
  await writeShardedSafetensors(folder, sources, { maxShardBytes: 5e9, metadata: { format: "pt" } });
  const tokenizer = byteTokenizer();
  if (model.shape.vocabSize === tokenizer.vocabSize)
    for (const { name, contents } of tokenizer.files()) await writeFileAtomic(join(folder, name), contents);
  await writeFileAtomic(join(folder, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
}
