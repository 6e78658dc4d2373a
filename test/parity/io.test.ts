/**
 * The formats of src/io against the Python libraries that define them. Runs with ATTUNE_PEERS = a venv that has safetensors, gguf,
 * transformers and huggingface_hub (`npm run test:parity`).
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { ModelError } from "../../src/errors.js";
import { openGguf } from "../../src/io/gguf/gguf.js";
import { CachedRepository } from "../../src/io/hub/cache.js";
import {
  openSafetensors,
  readEntry,
  readHeader,
  type TensorSource,
  writeSafetensors,
  writeShardedSafetensors,
} from "../../src/io/safetensors.js";
import { mutate, repetitions, seededIntegers, temporaryFolder } from "../../src/io/testing/folders.js";

const peers = process.env.ATTUNE_PEERS;
const skip = peers === undefined && "needs ATTUNE_PEERS, a Python venv with safetensors, gguf and transformers";
const script = fileURLToPath(new URL("../../../test/parity/io.py", import.meta.url));

async function python(...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(join(peers!, "bin", "python"), [script, ...args], { maxBuffer: 1 << 28 });
  return stdout.trim().split("\n").at(-1)!;
}

const f32 = (...values: number[]) => new Uint8Array(new Float32Array(values).buffer);

test("we write the very bytes that the safetensors library writes, and read what it writes", { skip }, async (t) => {
  const folder = temporaryFolder(t);
  await python("write_safetensors", folder);
  const sources: TensorSource[] = [
    { name: "b.half", dtype: "f16", shape: [3], data: () => new Uint8Array(new Uint16Array([0x3c00, 0xc000, 0x4200]).buffer) },
    { name: "a.bf16", dtype: "bf16", shape: [1, 2], data: () => new Uint8Array(new Uint16Array([0x3f00, 0x4080]).buffer) },
    { name: "z.weight", dtype: "f32", shape: [2, 3], data: () => f32(0, 1, 2, 3, 4, 5) },
    { name: "é", dtype: "f32", shape: [1], data: () => f32(7) },
  ];
  const ours = join(folder, "ours.safetensors");
  const theirs = join(folder, "python.safetensors");
  await writeSafetensors(ours, sources, { metadata: { format: "pt" } });
  assert.deepEqual(readFileSync(ours), readFileSync(theirs));
  const { tensors } = await openSafetensors(theirs);
  for (const { name, shape, data } of sources) {
    assert.deepEqual(tensors.get(name)!.shape, shape);
    assert.deepEqual(await readEntry(tensors.get(name)!), await data());
  }
});

test("damaged safetensors files: what the Rust library refuses we refuse; we refuse more only where stated", {
  skip,
}, async (t) => {
  const folder = temporaryFolder(t);
  const path = join(folder, "x.safetensors");
  await writeSafetensors(path, [
    { name: "a", dtype: "f32", shape: [2, 2], data: () => f32(1, 2, 3, 4) },
    { name: "b", dtype: "f16", shape: [2], data: () => new Uint8Array(4) },
  ]);
  const original = readFileSync(path);
  const headerEnd = 8 + original.readUInt32LE();
  const random = seededIntegers(7);
  const cases: Buffer[] = [];
  for (let i = 0; i < repetitions(20_000, 100_000); i++) {
    // Most edits are in the JSON, with the length put right again, so that they reach the checks behind it.
    const json = mutateText(original.subarray(8, headerEnd).toString("latin1"), random);
    const length = Buffer.alloc(8);
    length.writeUInt32LE(json.length);
    const whole = Buffer.concat([length, Buffer.from(json, "latin1"), original.subarray(headerEnd)]);
    cases.push(random(4) === 0 ? Buffer.from(mutate(original, random)) : whole);
  }
  const sized = cases.flatMap((bytes) => {
    const size = Buffer.alloc(4);
    size.writeUInt32LE(bytes.length);
    return [size, bytes];
  });
  writeFileSync(join(folder, "cases"), Buffer.concat(sized));
  const verdicts = await python("judge", folder);
  assert.equal(verdicts.length, cases.length);

  let accepted = 0;
  for (const [i, bytes] of cases.entries()) {
    const rust = verdicts[i] === "1";
    const read = async (target: Uint8Array, position: number) => bytes.copy(target, 0, position);
    const ours = await readHeader("x", { size: bytes.length, read }).then(
      () => "",
      (error: unknown) => {
        assert(error instanceof ModelError);
        return error.message;
      },
    );
    if (ours === "") accepted++;
    const stricter = /duplicate key|does not begin with "\{"|: not an object/.test(ours);
    assert(
      rust === (ours === "") || (rust && stricter),
      `case ${i}, Rust ${rust}, ours "${ours}": ${JSON.stringify(bytes.toString("latin1"))}`,
    );
  }
  assert(accepted > 100, `only ${accepted} files were good: the edits are too rough to tell much`);
});

/** Edits that keep JSON mostly JSON: other digits, other words, moved parts. */
function mutateText(text: string, random: (below: number) => number): string {
  const pieces = [
    "0",
    "1",
    "2",
    "4",
    "8",
    "16",
    "-1",
    "1.0",
    "1e1",
    "-0",
    "null",
    "true",
    "[]",
    "{}",
    '""',
    " ",
    ",",
    ":",
    "[",
    "]",
    "F32",
    "F16",
    "BF16",
    "I64",
    "U8",
    "F4",
    '"x":1,',
    '"a"',
    "\\u0061",
    "18446744073709551616",
  ];
  let result = text;
  for (let edits = random(3); edits >= 0; edits--) {
    const tokens = result.match(/"[^"]*"|-?\d+|[^\s"\d]|\s/g) ?? [];
    const at = random(tokens.length);
    const kind = random(4);
    if (kind === 0) tokens[at] = pieces[random(pieces.length)]!;
    else if (kind === 1) tokens.splice(at, 0, pieces[random(pieces.length)]!);
    else if (kind === 2) tokens.splice(at, 1);
    else tokens[at] = tokens[random(tokens.length)]!;
    result = tokens.join("");
  }
  return result;
}

test("a GGUF file of gguf-py: config, names, types, and every row where Hugging Face has it", { skip }, async (t) => {
  const folder = temporaryFolder(t);
  await python("write_gguf", folder);
  const model = await openGguf(join(folder, "llama.gguf"));
  assert.deepEqual(model.config.rope_scaling, { rope_type: "linear", factor: 2 });
  assert.equal(model.config.rms_norm_eps, 1e-6);
  const layer = "model.layers.0";
  const tensors: [string, string, string][] = [
    ["token_embd", "model.embed_tokens", "q6_k"],
    ["blk.0.attn_q", `${layer}.self_attn.q_proj`, "q8_0"],
    ["blk.0.attn_k", `${layer}.self_attn.k_proj`, "f16"],
    ["blk.0.attn_v", `${layer}.self_attn.v_proj`, "q4_0"],
    ["blk.0.attn_output", `${layer}.self_attn.o_proj`, "q4_1"],
    ["blk.0.ffn_gate", `${layer}.mlp.gate_proj`, "q5_0"],
    ["blk.0.ffn_up", `${layer}.mlp.up_proj`, "q5_1"],
    ["blk.0.ffn_down", `${layer}.mlp.down_proj`, "bf16"],
    ["blk.0.attn_norm", `${layer}.input_layernorm`, "f32"],
    ["blk.0.ffn_norm", `${layer}.post_attention_layernorm`, "f32"],
    ["output_norm", "model.norm", "f32"],
  ];
  assert.equal(model.tensors.size, tensors.length);
  for (const [ggufName, name, dtype] of tensors) {
    assert.equal(model.tensors.get(`${name}.weight`)?.dtype, dtype);
    const natural = new Uint8Array(readFileSync(join(folder, `${ggufName}.raw`)));
    assert.deepEqual(await model.readTensor(`${name}.weight`), natural, name);
  }
});

test("transformers loads the shards that we write", { skip }, async (t) => {
  const folder = temporaryFolder(t);
  const sizes: [string, number[]][] = [
    ["model.embed_tokens.weight", [16, 8]],
    ["model.norm.weight", [8]],
    ...["input_layernorm", "post_attention_layernorm"].map((name): [string, number[]] => [`model.layers.0.${name}.weight`, [8]]),
    ...["q", "k", "v", "o"].map((name): [string, number[]] => [`model.layers.0.self_attn.${name}_proj.weight`, [8, 8]]),
    ...["gate", "up"].map((name): [string, number[]] => [`model.layers.0.mlp.${name}_proj.weight`, [16, 8]]),
    ["model.layers.0.mlp.down_proj.weight", [8, 16]],
  ];
  let sum = 0;
  const sources = sizes.map(([name, shape], index): TensorSource => {
    const values = Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => index + i / 1024);
    sum += values.reduce((a, b) => a + b, 0);
    return { name, shape, dtype: "f32", data: () => f32(...values) };
  });
  const config = {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: 8,
    intermediate_size: 16,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    vocab_size: 16,
    tie_word_embeddings: true,
  };
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  const files = await writeShardedSafetensors(folder, sources, { maxShardBytes: 1000, metadata: { format: "pt" } });
  assert(files.length > 3);
  const loaded = JSON.parse(await python("read_folder", folder));
  assert.deepEqual(loaded.problems, {});
  assert(Math.abs(loaded.sum - sum) < 1e-6);
});

test("huggingface_hub finds what we put into its cache", { skip }, async (t) => {
  const cache = temporaryFolder(t);
  const commit = "c".repeat(40);
  const hash = "d".repeat(64);
  const repository = new CachedRepository(cache, "owner/name");
  mkdirSync(join(repository.folder, "blobs"), { recursive: true });
  writeFileSync(repository.blob(hash), "{}");
  await repository.addToSnapshot(commit, "config.json", hash);
  await repository.rememberCommit("main", commit);
  assert.deepEqual(JSON.parse(await python("find_in_hub_cache", cache, "owner/name")), {
    path: repository.snapshot(commit),
    warnings: [],
  });
});
