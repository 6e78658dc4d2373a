/**
 * Writes a model of a known shape with random weights in bf16, a tensor at a time: `node dist/bench/random-model.js llama-2-7b FOLDER`. For measuring
 * what a step on a large model takes where no such model can be downloaded.
 */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Rng } from "../src/core/rng.js";
import { SymbolicDevice } from "../src/core/symbolic.js";
import { sizeOf } from "../src/core/tensor.js";
import { type TensorSource, writeShardedSafetensors } from "../src/io/safetensors.js";
import { buildModel } from "../src/models/load.js";

const shapes: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  "llama-2-7b": {
    ...{
      model_type: "llama",
      architectures: ["LlamaForCausalLM"],
      vocab_size: 32000,
      hidden_size: 4096,
      intermediate_size: 11008,
    },
    ...{ num_hidden_layers: 32, num_attention_heads: 32, num_key_value_heads: 32, max_position_embeddings: 4096 },
    ...{ rms_norm_eps: 1e-5, tie_word_embeddings: false },
  },
};

const [name, folder] = process.argv.slice(2);
const config = shapes[name ?? ""];
if (config === undefined || folder === undefined)
  throw new Error(`expected a shape (${Object.keys(shapes).join(", ")}) and a folder, got ${process.argv.slice(2).join(" ")}`);

/** Normal numbers of deviation 0.02 as bf16, to draw from: a call of `Rng.normal` for each of billions would take minutes. */
const rng = new Rng(0);
const normals = Uint16Array.from(
  { length: 65536 },
  () => new Uint32Array(Float32Array.of(0.02 * rng.normal()).buffer)[0]! >>> 16,
);
const one = 0x3f80;

let state = 1;
function randomBits(count: number): Uint16Array {
  const bits = new Uint16Array(count);
  for (let i = 0; i < count; i++) {
    state ^= state << 13; // xorshift32 (Marsaglia 2003)
    state ^= state >>> 17;
    state ^= state << 5;
    bits[i] = normals[state & 0xffff]!;
  }
  return bits;
}

const model = buildModel(new SymbolicDevice(), config, folder);
const sources = [...model.namedParameters()].map(
  ([path, { shape }]): TensorSource => ({
    name: path,
    dtype: "bf16",
    shape,
    data: () =>
      new Uint8Array((shape.length === 1 ? new Uint16Array(sizeOf(shape)).fill(one) : randomBits(sizeOf(shape))).buffer),
  }),
);
await mkdir(folder, { recursive: true });
await writeShardedSafetensors(folder, sources, { maxShardBytes: 5e9, metadata: { format: "pt" } });
await writeFile(join(folder, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
