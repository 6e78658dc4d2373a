import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { temporaryFolder } from "../testing/folders.js";
import { ggufShape } from "./config.js";
import { openGguf } from "./gguf.js";
import { readGgufHeader } from "./header.js";
import { ggufModuleName, huggingFaceName, interleavedHeads, reorderRows } from "./names.js";
import { type GgufMetadata, type GgufTensorSource, writeGguf } from "./writer.js";

function floats(name: string, shape: number[], first = 0): GgufTensorSource {
  const count = shape.reduce((product, size) => product * size, 1);
  return {
    name,
    dtype: "f32",
    shape,
    data: () => new Uint8Array(Float32Array.from({ length: count }, (_, i) => first + i).buffer),
  };
}

test("what is written is read back: every kind of value, every tensor in its place", async (t) => {
  const path = join(temporaryFolder(t), "model.gguf");
  const metadata: GgufMetadata = {
    "general.architecture": { string: "llama" },
    "a.count": { u32: 2 ** 32 - 1 },
    "a.number": { f32: 0.5 },
    "a.flag": { bool: true },
    "a.words": { strings: ["", "Ġhé", "🙂"] },
    "a.codes": { i32s: [-1, 3] },
    "a.scores": { f32s: [-0.25, 1] },
    "a.nothing": { strings: [] },
  };
  const odd = { name: "odd", dtype: "f16", shape: [3], data: () => new Uint8Array([1, 2, 3, 4, 5, 6]) } as const;
  const blocks = { name: "blocks", dtype: "q8_0", shape: [2, 32], data: async () => new Uint8Array(68).fill(7) } as const;
  await writeGguf(path, metadata, [odd, blocks, floats("floats", [2, 3, 4])]);

  const header = readGgufHeader(path);
  assert.deepEqual(
    { ...header.metadata },
    {
      "general.architecture": "llama",
      "a.count": 2 ** 32 - 1,
      "a.number": 0.5,
      "a.flag": true,
      "a.words": ["", "Ġhé", "🙂"],
      "a.codes": [-1, 3],
      "a.scores": [-0.25, 1],
      "a.nothing": [],
    },
  );
  assert.deepEqual(
    header.tensors.map(({ name, dtype, shape, bytes }) => ({ name, dtype, shape, bytes })),
    [
      { name: "odd", dtype: "f16", shape: [3], bytes: 6 },
      { name: "blocks", dtype: "q8_0", shape: [2, 32], bytes: 68 },
      { name: "floats", dtype: "f32", shape: [2, 3, 4], bytes: 96 },
    ],
  );
  for (const { offset } of header.tensors) assert.equal(offset % 32, 0);
});

test("tensors that GGUF or llama.cpp cannot have are refused, and no file is left", async (t) => {
  const folder = temporaryFolder(t);
  const path = join(folder, "model.gguf");
  const refuse = async (tensors: GgufTensorSource[], message: RegExp) =>
    assert.rejects(writeGguf(path, {}, tensors), { code: "MODEL", message });
  await refuse([floats("a", [2]), floats("a", [2])], /"a" cannot be written: there is another of this name/);
  await refuse([floats("x".repeat(64), [2])], /names of 1 to 63 bytes/);
  await refuse([floats("a", [1, 1, 1, 1, 1])], /5 dimensions/);
  await refuse([floats("a", [2, 0])], /its shape is \[2,0\]/);
  await refuse([{ ...floats("a", [2, 48]), dtype: "q8_0" }], /rows of 48 do not divide into q8_0 blocks/);
  await refuse([{ ...floats("a", [2, 64]), dtype: "nf4" }], /GGUF has no type nf4/);
  await refuse([{ ...floats("a", [2]), data: () => new Uint8Array(4) }], /tensor a should have 8 bytes, got 4/);
  assert.deepEqual(readdirSync(folder), []);
});

test("names of modules go both ways", () => {
  for (const path of [
    "model.embed_tokens",
    "model.norm",
    "lm_head",
    "model.layers.12.self_attn.q_norm",
    "model.layers.0.mlp.down_proj",
  ]) {
    const name = ggufModuleName(path);
    assert.ok(name !== undefined, path);
    assert.equal(huggingFaceName(`${name}.weight`), `${path}.weight`);
  }
  assert.equal(ggufModuleName("model.layers.3.self_attn.o_proj"), "blk.3.attn_output");
  assert.equal(ggufModuleName("model.layers.3.self_attn.rotary"), undefined);
  assert.equal(ggufModuleName("model.layers.03.mlp.up_proj"), undefined);
});

test("rows of q and k are interleaved for Llama and Mistral alone, and come back", () => {
  const config = { model_type: "llama", num_attention_heads: 2, num_key_value_heads: 1 };
  assert.equal(interleavedHeads("model.layers.0.self_attn.q_proj", config), 2);
  assert.equal(interleavedHeads("model.layers.0.self_attn.k_proj", { ...config, model_type: "mistral" }), 1);
  assert.equal(interleavedHeads("model.layers.0.self_attn.v_proj", config), undefined);
  assert.equal(interleavedHeads("model.layers.0.self_attn.q_proj", { ...config, model_type: "qwen2" }), undefined);

  const natural = Uint8Array.from({ length: 16 }, (_, i) => i); // two heads of four rows of two bytes
  const interleaved = reorderRows(natural, 8, 2, "gguf");
  assert.deepEqual([...interleaved], [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
  assert.deepEqual(reorderRows(interleaved, 8, 2, "huggingFace"), natural);
});

const config = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: 8,
  intermediate_size: 16,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 4,
  hidden_act: "silu",
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
  rope_scaling: null,
  max_position_embeddings: 128,
  vocab_size: 3,
  tie_word_embeddings: true,
};

async function shapeReadBack(path: string, changes: Record<string, unknown>) {
  const { architecture, metadata, ropeFactors } = ggufShape({ ...config, ...changes }, 3, "config.json");
  const tensors = [floats("token_embd.weight", [3, 8])];
  if (ropeFactors !== undefined)
    tensors.push({ name: "rope_freqs.weight", dtype: "f32", shape: [2], data: () => new Uint8Array(ropeFactors.buffer) });
  await writeGguf(path, { "general.architecture": { string: architecture }, ...metadata }, tensors);
  return (await openGguf(path)).config;
}

test("a config goes into metadata and back", async (t) => {
  const path = join(temporaryFolder(t), "model.gguf");
  assert.deepEqual(await shapeReadBack(path, {}), config);
  const qwen = { model_type: "qwen3", architectures: ["Qwen3ForCausalLM"], head_dim: 6 };
  assert.deepEqual(await shapeReadBack(path, qwen), { ...config, ...qwen });
  assert.deepEqual(await shapeReadBack(path, { model_type: "mistral", num_key_value_heads: null, head_dim: null }), {
    ...config,
    num_key_value_heads: 2,
  });
  const linear = { rope_type: "linear", factor: 2 };
  assert.deepEqual((await shapeReadBack(path, { rope_scaling: linear })).rope_scaling, linear);
  // transformers 5 keeps theta beside the scaling
  const newer = { rope_theta: null, rope_scaling: null, rope_parameters: { rope_type: "default", rope_theta: 10000 } };
  assert.equal((await shapeReadBack(path, newer)).rope_theta, 10000);

  const yarn = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 32, attention_factor: 1.5, beta_fast: 16 };
  const { attention_factor, ...back } = (await shapeReadBack(path, { rope_scaling: yarn })).rope_scaling as typeof yarn;
  assert.ok(Math.abs(attention_factor - 1.5) < 1e-6);
  assert.deepEqual(back, { rope_type: "yarn", factor: 4, original_max_position_embeddings: 32, beta_fast: 16 });
});

test("llama3's scaling becomes factors: 1 for short waves, the whole factor for long ones, between them smoothly", async (t) => {
  const llama3 = {
    rope_type: "llama3",
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 8192,
  };
  const { ropeFactors } = ggufShape({ ...config, head_dim: 64, rope_scaling: llama3 }, 3, "config.json");
  assert.equal(ropeFactors![0], 1);
  assert.equal(ropeFactors![31], 8);
  const between = [...ropeFactors!].filter((factor) => factor > 1 && factor < 8);
  assert.ok(between.length > 0);
  assert.deepEqual(
    between,
    [...between].sort((a, b) => a - b),
  );
  const path = join(temporaryFolder(t), "model.gguf");
  const { ropeFactors: small } = ggufShape({ ...config, rope_scaling: llama3 }, 3, "config.json");
  assert.deepEqual((await shapeReadBack(path, { rope_scaling: llama3 })).rope_factors, [...small!]);
  assert.deepEqual((await shapeReadBack(path, { rope_factors: [1, 4] })).rope_factors, [1, 4]);
});

test("a config that GGUF cannot hold is refused, with what is possible", () => {
  const refused = (changes: Record<string, unknown>, message: RegExp) =>
    assert.throws(() => ggufShape({ ...config, ...changes }, 3, "config.json"), { code: "MODEL", message });
  refused({ model_type: "gpt2" }, /"gpt2" cannot be written as GGUF by attune yet; llama, mistral, qwen2 and qwen3 can/);
  refused({ hidden_size: undefined }, /no number "hidden_size"/);
  refused({ rope_scaling: { rope_type: "longrope" } }, /RoPE scaling "longrope" cannot be written/);
  refused({ rope_scaling: { rope_type: "yarn", factor: 2, truncate: false } }, /truncate: false/);
});
