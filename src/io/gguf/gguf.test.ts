import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { ModelError } from "../../errors.js";
import {
  buildGguf,
  type GgufTestTensor,
  type GgufValue,
  mutate,
  repetitions,
  seededIntegers,
  temporaryFolder,
} from "../testing/folders.js";
import { openGguf } from "./gguf.js";
import { parseGgufHeader } from "./header.js";

const F32 = 0;
const Q8_0 = 8;

function floats(name: string, dims: number[], values?: number[]): GgufTestTensor {
  const count = dims.reduce((product, size) => product * size, 1);
  return {
    name,
    type: F32,
    dims,
    data: new Uint8Array(Float32Array.from(values ?? Array.from({ length: count }, (_, i) => i)).buffer),
  };
}

// Two heads of four features, one head of keys and values: hidden size 8.
const smallMetadata: Record<string, GgufValue> = {
  "general.architecture": { string: "llama" },
  "llama.block_count": { u32: 1 },
  "llama.context_length": { u32: 128 },
  "llama.embedding_length": { u32: 8 },
  "llama.feed_forward_length": { u32: 16 },
  "llama.attention.head_count": { u32: 2 },
  "llama.attention.head_count_kv": { u32: 1 },
  "llama.attention.layer_norm_rms_epsilon": { f32: 1e-5 },
  "llama.rope.freq_base": { f32: 500000 },
  "tokenizer.ggml.tokens": { strings: ["<s>", "Ġhé", "\ufffd"] },
  "tokenizer.ggml.token_type": { i32s: [3, 1, 1] },
  "tokenizer.ggml.bos_token_id": { u32: 0 },
  "tokenizer.ggml.add_bos_token": { bool: true },
};

const smallTensors = [
  floats("token_embd.weight", [8, 3]),
  floats("blk.0.attn_q.weight", [8, 8]),
  floats("blk.0.attn_q.bias", [8]),
  floats("blk.0.attn_k.weight", [8, 4]),
  floats("blk.0.attn_v.weight", [8, 4]),
  floats("blk.0.attn_output.weight", [8, 8]),
  floats("blk.0.attn_norm.weight", [8]),
  floats("blk.0.ffn_norm.weight", [8]),
  floats("blk.0.ffn_gate.weight", [8, 16]),
  floats("blk.0.ffn_up.weight", [8, 16]),
  floats("blk.0.ffn_down.weight", [16, 8]),
  floats("output_norm.weight", [8]),
];

function write(t: TestContext, bytes: Uint8Array): string {
  const path = join(temporaryFolder(t), "model.gguf");
  writeFileSync(path, bytes);
  return path;
}

async function floatsOf(model: Awaited<ReturnType<typeof openGguf>>, name: string): Promise<number[]> {
  return [...new Float32Array((await model.readTensor(name)).buffer as ArrayBuffer)];
}

test("a Llama file looks like a Hugging Face folder", async (t) => {
  const model = await openGguf(write(t, buildGguf(smallMetadata, smallTensors)));
  assert.deepEqual(model.config, {
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
    bos_token_id: 0,
  });
  assert.deepEqual([...model.tensors.keys()].sort(), [
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "model.norm.weight",
  ]);
  assert.deepEqual(model.tensors.get("model.layers.0.mlp.up_proj.weight")?.shape, [16, 8]);
  assert.deepEqual(model.ggufMetadata?.["tokenizer.ggml.tokens"], ["<s>", "Ġhé", "\ufffd"]);
  assert.match(model.fingerprint, /^[0-9a-f]{64}$/);
  await assert.rejects(model.readTensor("lm_head.weight"), /has no tensor lm_head\.weight/);
});

test("rows of q and k come back in Hugging Face's order, others are left alone", async (t) => {
  // Rows are numbered by the first element; llama.cpp stores rows 0 2 1 3 of every head of four.
  const rows = (order: number[]) => order.flatMap((row) => Array.from({ length: 8 }, (_, column) => row * 8 + column));
  const natural = rows([0, 1, 2, 3, 4, 5, 6, 7]);
  const tensors = smallTensors.map((tensor) => {
    if (tensor.name === "blk.0.attn_q.weight") return floats(tensor.name, [8, 8], rows([0, 2, 1, 3, 4, 6, 5, 7]));
    if (tensor.name === "blk.0.attn_q.bias") return floats(tensor.name, [8], [0, 2, 1, 3, 4, 6, 5, 7]);
    if (tensor.name === "blk.0.attn_k.weight") return floats(tensor.name, [8, 4], rows([0, 2, 1, 3]));
    return tensor;
  });
  const model = await openGguf(write(t, buildGguf(smallMetadata, tensors)));
  assert.deepEqual(await floatsOf(model, "model.layers.0.self_attn.q_proj.weight"), natural);
  assert.deepEqual(await floatsOf(model, "model.layers.0.self_attn.q_proj.bias"), [0, 1, 2, 3, 4, 5, 6, 7]);
  assert.deepEqual(await floatsOf(model, "model.layers.0.self_attn.k_proj.weight"), natural.slice(0, 32));
  assert.deepEqual(await floatsOf(model, "model.layers.0.self_attn.v_proj.weight"), natural.slice(0, 32));
});

test("block types move as whole rows", async (t) => {
  const metadata = { ...smallMetadata, "llama.embedding_length": { u32: 32 }, "llama.attention.head_count": { u32: 8 } };
  const block = (row: number) => new Uint8Array(34).fill(row);
  const q: GgufTestTensor = {
    name: "blk.0.attn_q.weight",
    type: Q8_0,
    dims: [32, 32],
    data: Buffer.concat(Array.from({ length: 32 }, (_, row) => block(row))),
  };
  const model = await openGguf(write(t, buildGguf(metadata, [floats("token_embd.weight", [32, 3]), q])));
  assert.equal(model.tensors.get("model.layers.0.self_attn.q_proj.weight")?.dtype, "q8_0");
  const data = await model.readTensor("model.layers.0.self_attn.q_proj.weight");
  assert.deepEqual(
    [...data.slice(0, 4 * 34)],
    [0, 2, 1, 3].flatMap((row) => [...block(row)]),
  );
});

test("qwen2 rows are not moved", async (t) => {
  const metadata = Object.fromEntries(
    Object.entries(smallMetadata).map(([key, value]) => [key.replace("llama.", "qwen2."), value]),
  );
  const model = await openGguf(write(t, buildGguf({ ...metadata, "general.architecture": { string: "qwen2" } }, smallTensors)));
  assert.deepEqual(model.config.architectures, ["Qwen2ForCausalLM"]);
  assert.deepEqual(await floatsOf(model, "model.layers.0.self_attn.q_proj.bias"), [0, 1, 2, 3, 4, 5, 6, 7]);
});

test("RoPE scalings and an untied head are told in the config", async (t) => {
  const configOf = async (extra: Record<string, GgufValue>, tensors: GgufTestTensor[] = []) =>
    (await openGguf(write(t, buildGguf({ ...smallMetadata, ...extra }, [...smallTensors, ...tensors])))).config;
  const scaling = async (extra: Record<string, GgufValue>) => (await configOf(extra)).rope_scaling;
  const key = (name: string) => `llama.rope.scaling.${name}`;
  assert.deepEqual(await scaling({ [key("type")]: { string: "linear" }, [key("factor")]: { f32: 4 } }), {
    rope_type: "linear",
    factor: 4,
  });
  const yarn = { [key("type")]: { string: "yarn" }, [key("factor")]: { f32: 2 } };
  assert.deepEqual(
    await scaling({ ...yarn, [key("original_context_length")]: { u32: 64 }, [key("yarn_beta_fast")]: { f32: 16 } }),
    { rope_type: "yarn", factor: 2, original_max_position_embeddings: 64, beta_fast: 16 },
  );
  assert.deepEqual(await scaling({ ...yarn, [key("attn_factor")]: { f32: 0.5 } }), {
    rope_type: "yarn",
    factor: 2,
    original_max_position_embeddings: 128,
    attention_factor: 0.5 * (1 + 0.1 * Math.log(2)),
  });
  const factors = (values: number[]) => floats("rope_freqs.weight", [values.length], values);
  const config = await configOf({}, [factors([1, 8])]);
  assert.deepEqual([config.rope_factors, config.rope_scaling], [[1, 8], null]);
  await assert.rejects(
    scaling({ [key("type")]: { string: "longrope" }, [key("factor")]: { f32: 4 } }),
    /"longrope" is not supported/,
  );
  await assert.rejects(configOf({}, [factors([1, Number.NaN])]), /not a positive number/);
  await assert.rejects(configOf({}, [factors([1, 2, 3])]), /3 numbers, expected 2/);

  const untied = await openGguf(write(t, buildGguf(smallMetadata, [...smallTensors, floats("output.weight", [8, 3])])));
  assert.equal(untied.config.tie_word_embeddings, false);
  assert(untied.tensors.has("lm_head.weight"));
});

test("a factor is read as llama.cpp reads it: linear without a type, older name last, none of 1 or 0", async (t) => {
  const scaling = async (extra: Record<string, GgufValue>) =>
    (await openGguf(write(t, buildGguf({ ...smallMetadata, ...extra }, smallTensors)))).config.rope_scaling;
  const [type, factor] = ["llama.rope.scaling.type", "llama.rope.scaling.factor"];
  const older = { "llama.rope.scale_linear": { f32: 4 } };
  const linear = (factor: number) => ({ rope_type: "linear", factor });
  assert.deepEqual(await scaling(older), linear(4));
  assert.deepEqual(await scaling({ ...older, [factor]: { f32: 2 } }), linear(2));
  assert.deepEqual(await scaling({ ...older, [factor]: { f32: 0 } }), linear(4));
  assert.deepEqual(await scaling({ [factor]: { f32: 8 } }), linear(8));
  assert.deepEqual(await scaling({ ...older, [type]: { string: "linear" } }), linear(4));
  assert.equal(await scaling({ ...older, [type]: { string: "none" } }), null);
  assert.equal(await scaling({ [type]: { string: "linear" } }), null);
  assert.equal(await scaling({ "llama.rope.scale_linear": { f32: 1 } }), null);
  await assert.rejects(
    scaling({ "llama.rope.scale_linear": { f32: -4 } }),
    /scale_linear" is -4, expected a number of 0 or more/,
  );
  await assert.rejects(scaling({ "llama.rope.scaling.attn_factor": { f32: 2 } }), /attn_factor" is 2, which is not supported/);
});

test("metadata that would change the model is refused, and what has no effect is named", async (t) => {
  const noticesOf = async (extra: Record<string, GgufValue>) => {
    const path = write(t, buildGguf({ ...smallMetadata, ...extra }, smallTensors));
    return (await openGguf(path)).notices!.map((notice) => notice.replace(path, "FILE"));
  };
  assert.deepEqual(await noticesOf({}), []);
  assert.deepEqual(
    await noticesOf({
      "llama.attention.sliding_window": { u32: 64 },
      "llama.novel": { string: "x" },
      "llama.vocab_size": { u32: 3 },
      "llama.expert_used_count": { u32: 0 },
      "llama.attention.causal": { bool: true },
      "llama.logit_scale": { f32: 1 },
      "someone.quantized": { string: "x" },
      "general.name": { string: "x" },
    }),
    ["FILE: metadata has no effect here, as in llama.cpp: llama.attention.sliding_window, llama.novel"],
  );
  for (const [key, value] of Object.entries({
    "attention.causal": { bool: false },
    "attention.clamp_kqv": { f32: 8 },
    "attention.scale": { f32: 0.5 },
    final_logit_softcapping: { f32: 30 },
    logit_scale: { f32: 0.1 },
    "rope.scaling.yarn_log_multiplier": { f32: 0.1 },
    use_parallel_residual: { bool: true },
  }))
    await assert.rejects(noticesOf({ [`llama.${key}`]: value }), new RegExp(`"llama.${key}" is .*, which is not supported`));
});

test("metadata that makes no usable model is refused by name", async (t) => {
  const cases: [Record<string, GgufValue>, RegExp][] = [
    [{ "general.architecture": { string: "mamba" } }, /architecture "mamba" is not supported; attune reads llama, qwen2, qwen3/],
    [{ "general.architecture": { u32: 1 } }, /"general.architecture" is 1, expected a string/],
    [{ "llama.block_count": { u32: 4294967295 } }, /expected a whole number/],
    [{ "llama.block_count": { u32: 100000 } }, /claims 100000 layers/],
    [{ "llama.attention.head_count": { u32: 0 } }, /head_count" is missing/],
    [{ "llama.attention.head_count": { i32s: [2] } }, /is an array/],
    [{ "llama.attention.head_count": { u32: 3 } }, /even head size/],
    [{ "llama.attention.head_count": { u32: 8 } }, /even head size/],
    [{ "llama.attention.head_count": { u32: 4 } }, /expected 2 rows/],
    [{ "llama.attention.key_length": { u32: 2 } }, /q_proj.*expected 4 rows/],
    [{ "llama.attention.value_length": { u32: 2 } }, /not supported/],
    [{ "llama.rope.dimension_count": { u32: 8 } }, /rotates 8 of 4/],
    [{ "llama.rope.dimension_count": { u32: 2 } }, /rotates 2 of 4/],
    [{ "llama.attention.layer_norm_rms_epsilon": { f32: Number.NaN } }, /positive number/],
    [{ "llama.expert_count": { u32: 8 } }, /mixture-of-experts/],
    [{ "split.count": { u32: 3 } }, /one of 3 parts/],
    [{ "general.alignment": { u32: 0 } }, /power of two/],
    [{ "general.alignment": { u32: 24 } }, /power of two/],
    [{ "tokenizer.ggml.eos_token_id": { f32: 0.5 } }, /a token id/],
  ];
  for (const [extra, reason] of cases) {
    await assert.rejects(openGguf(write(t, buildGguf({ ...smallMetadata, ...extra }, smallTensors))), (error) => {
      assert(error instanceof ModelError);
      assert.match(error.message, reason);
      return true;
    });
  }
  await assert.rejects(openGguf(write(t, buildGguf(smallMetadata, smallTensors.slice(1)))), /no tensor token_embd\.weight/);
});

test("hostile headers are refused for their own reason", async (t) => {
  const original = buildGguf(smallMetadata, smallTensors);
  const patched = (at: number, value: bigint) => {
    const bytes = Buffer.from(original);
    bytes.writeBigUInt64LE(value, at);
    return bytes;
  };
  const tensor = (over: Partial<GgufTestTensor>) => buildGguf(smallMetadata, [...smallTensors, { ...floats("x", [8]), ...over }]);
  const infoOf = (name: string) => original.indexOf(name) + name.length; // dims count, dims, type, offset
  const cases: [Uint8Array, RegExp][] = [
    [Buffer.alloc(0), /fewer than the 24/],
    [original.subarray(0, 28), /tensors, more than fit/],
    [
      Buffer.concat([Buffer.from("GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "latin1"), Buffer.alloc(4)]),
      /tensors, more than fit/,
    ],
    [Buffer.concat([Buffer.from("GGML"), original.subarray(4)]), /does not begin with "GGUF"/],
    [Buffer.concat([original.subarray(0, 4), Buffer.from([0, 0, 0, 3]), original.subarray(8)]), /big-endian/],
    [Buffer.concat([original.subarray(0, 4), Buffer.from([1, 0, 0, 0]), original.subarray(8)]), /version 1/],
    [patched(8, 2n ** 64n - 1n), /18446744073709551615 tensors/],
    [patched(16, 2n ** 64n - 1n), /18446744073709551615 metadata values/],
    [patched(24, 2n ** 63n), /bytes of a metadata key/],
    [original.subarray(0, -1), /was cut off/],
    [original.subarray(0, 300), /middle of its header|more than fit/],
    [tensor({ type: 10 }), /Q2_K; attune reads F32, F16, BF16, Q8_0, .*Q6_K/],
    [tensor({ type: 4_000_000_000 }), /type number 4000000000/],
    [tensor({ dims: [1, 1, 1, 1, 8] }), /5 dimensions/],
    [tensor({ dims: [] }), /0 dimensions/],
    [tensor({ dims: [0] }), /dimension 0 is 0/],
    [tensor({ dims: [2 ** 40, 2 ** 40] }), /impossible/],
    [tensor({ dims: [2 ** 40] }), /was cut off/],
    [tensor({ type: 8, dims: [16, 2] }), /16 elements do not divide into q8_0 blocks of 32/],
    [tensor({ name: "output_norm.weight" }), /appears twice/],
    [patched(infoOf("blk.0.attn_q.weight") + 4 + 16 + 4, 1n), /lies at offset 1, expected/],
    [patched(infoOf("blk.0.attn_q.weight") + 4 + 16 + 4, 2n ** 64n - 1n), /behind the end/],
  ];
  for (const [index, [bytes, reason]] of cases.entries()) {
    const path = write(t, bytes);
    await assert.rejects(openGguf(path), (error) => {
      assert(error instanceof ModelError, `case ${index}: ${String(error)}`);
      assert(error.message.includes(path));
      assert.match(error.message, reason);
      return true;
    });
  }
  await assert.rejects(openGguf("/nowhere/x.gguf"), /no such file/);
  await assert.rejects(openGguf(temporaryFolder(t)), ModelError);
});

test("repeated keys and text that is not UTF-8 are refused", async (t) => {
  const twice = buildGguf({ ...smallMetadata, "aaaa.1": { u32: 1 }, "aaaa.2": { u32: 1 } }, smallTensors);
  twice.write("aaaa.1", twice.indexOf("aaaa.2"));
  await assert.rejects(openGguf(write(t, twice)), /"aaaa\.1" appears twice/);
  const broken = buildGguf(smallMetadata, smallTensors);
  broken[broken.indexOf("Ġhé")] = 0xff;
  await assert.rejects(openGguf(write(t, broken)), /tokenizer\.ggml\.tokens" is not UTF-8/);
});

test("damaged files are refused or consistent, never a crash", () => {
  const original = buildGguf(smallMetadata, smallTensors);
  const random = seededIntegers(2);
  let refused = 0;
  const count = repetitions(20_000, 2_000_000);
  const headerBytes = original.length - smallTensors.reduce((sum, { data }) => sum + data.length, 0);
  for (let i = 0; i < count; i++) {
    const bytes = Buffer.concat([mutate(original.subarray(0, headerBytes), random), original.subarray(headerBytes)]);
    const read = (target: Uint8Array, position: number) => {
      assert(target.length <= bytes.length, "memory is bounded by the file");
      const part = bytes.subarray(position, position + target.length);
      target.set(part);
      return part.length;
    };
    try {
      for (const { offset, bytes: length } of parseGgufHeader("x", { size: bytes.length, read }).tensors) {
        assert(offset + length <= bytes.length);
      }
    } catch (error) {
      assert(error instanceof ModelError, `case ${i}: ${String(error)}`);
      refused++;
    }
  }
  assert(refused > count / 4, String(refused));
});
