import assert from "node:assert/strict";
import { existsSync, readdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { z } from "zod";
import { ModelError } from "../../errors.js";
import { openSafetensors, type TensorSource, writeSafetensors } from "../safetensors.js";
import { temporaryFolder } from "../testing/folders.js";
import { checkTensors } from "./adapter-folder.js";
import { checkAdapterConfig, modulesToSaveOf, openAdapter, peft, saveAdapter } from "./peft.js";

const config = {
  peft_type: "LORA" as const,
  r: 2,
  lora_alpha: 4,
  target_modules: ["q_proj"],
  base_model_name_or_path: 'a "b"\n---',
};

function floats(name: string, shape: number[], values: number[]): TensorSource {
  return { name, dtype: "f32", shape, data: () => new Uint8Array(new Float32Array(values).buffer) };
}

const tensors = [
  floats("model.layers.0.self_attn.q_proj.lora_A.weight", [2, 1], [1, 2]),
  floats("model.layers.0.self_attn.q_proj.lora_B.weight", [1, 2], [3, 4]),
];

test("an adapter is saved under PEFT's names and read back under ours", async (t) => {
  const folder = join(temporaryFolder(t), "adapter");
  await saveAdapter(folder, config, tensors);
  assert.deepEqual(readdirSync(folder).sort(), ["adapter_config.json", "adapter_model.safetensors"]);
  const stored = await openSafetensors(join(folder, "adapter_model.safetensors"));
  assert.deepEqual(
    [...stored.tensors.keys()],
    [
      "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
      "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
    ],
  );
  assert.equal(stored.metadata.get("format"), "pt");

  const adapter = await openAdapter(folder);
  assert.equal(adapter.config.r, 2);
  assert.deepEqual(adapter.config.target_modules, ["q_proj"]);
  assert.deepEqual(
    [...adapter.tensors.keys()],
    tensors.map(({ name }) => name),
  );
  const data = await adapter.readTensor("model.layers.0.self_attn.q_proj.lora_B.weight");
  assert.deepEqual([...new Float32Array(data.buffer as ArrayBuffer)], [3, 4]);
  await assert.rejects(adapter.readTensor("x"), /has no tensor/);
});

for (const [peft_type, name] of [
  ["P_TUNING", "prompt.embedding.weight"],
  ["PROMPT_TUNING", "prompt.embedding.weight"],
  ["PREFIX_TUNING", "prefix.embedding.weight"],
] as const)
  test(`vectors of ${peft_type} are saved as PEFT's prompt_embeddings, a head under the base model wrapped once`, async (t) => {
    const folder = join(temporaryFolder(t), "adapter");
    await saveAdapter(folder, { peft_type }, [floats(name, [2, 1], [1, 2]), floats("score.weight", [1, 1], [3])], name);
    const stored = await openSafetensors(join(folder, "adapter_model.safetensors"));
    assert.deepEqual([...stored.tensors.keys()].sort(), ["base_model.score.weight", "prompt_embeddings"]);
    const adapter = await openAdapter(folder, name);
    assert.deepEqual([...adapter.tensors.keys()].sort(), [name, "score.weight"]);
    assert.deepEqual([...new Float32Array((await adapter.readTensor(name)).buffer as ArrayBuffer)], [1, 2]);
  });

test("names of tensors that have the adapter's in them are read, those of several adapters and of none refused", async (t) => {
  const folder = temporaryFolder(t);
  const namesOf = async (...names: string[]) => {
    await saveAdapter(folder, config, []);
    await writeSafetensors(
      join(folder, "adapter_model.safetensors"),
      names.map((name) => floats(name, [1, 1], [1])),
    );
    const adapter = await openAdapter(folder);
    for (const name of adapter.tensors.keys()) assert.equal((await adapter.readTensor(name)).length, 4);
    return [...adapter.tensors.keys()].sort();
  };
  const before = "base_model.model.";
  assert.deepEqual(
    await namesOf(
      `${before}m.lora_A.default.weight`,
      `${before}m.lora_B.default.weight`,
      `${before}m.lora_magnitude_vector.default.weight`,
      `${before}e.lora_embedding_A.default`,
      `${before}e.lora_embedding_B.default`,
      `${before}lm_head.modules_to_save.default.weight`,
    ),
    [
      ...["e.lora_embedding_A", "e.lora_embedding_B", "lm_head.weight"],
      ...["m.lora_A.weight", "m.lora_B.weight", "m.lora_magnitude_vector"],
    ],
  );
  assert.deepEqual(await namesOf(`${before}m.lora_magnitude_vector.weight`), ["m.lora_magnitude_vector"]);
  assert.deepEqual(await namesOf(`${before}m.lora_A.weight`, `${before}m.lora_B.other.weight`), [
    "m.lora_A.weight",
    "m.lora_B.weight",
  ]);
  const refused: [names: string[], message: RegExp][] = [
    [
      [`${before}m.lora_A.a.weight`, `${before}m.lora_B.b.weight`],
      /several adapters: "base_model\.model\.m\.lora_A\.a\.weight", /,
    ],
    [[`${before}m.lora_A.a.weight`, `${before}m.lora_A.weight`], /"base_model\.model\.m\.lora_A\..*weight" is there twice/],
    [["m.lora_A.weight"], /"m\.lora_A\.weight" does not begin with "base_model\.model\.": PEFT would pass over it/],
  ];
  for (const [names, message] of refused) await assert.rejects(namesOf(...names), message);
});

test("modules that are trained whole are named once in the config", async (t) => {
  const folder = join(temporaryFolder(t), "adapter");
  const origin = { name: "base", config: {}, taskType: "SEQ_CLS", modulesToSave: ["score", "score"] } as const;
  const { base_model_name_or_path: _, ...settings } = config;
  await peft().save(folder, { ...settings, modules_to_save: ["lm_head"] }, origin, tensors);
  const { config: saved } = await openAdapter(folder);
  assert.deepEqual(modulesToSaveOf(saved), ["lm_head", "score"]);
  assert.equal(saved.task_type, "SEQ_CLS");
  assert.equal(saved.base_model_name_or_path, "base");
  assert.deepEqual(modulesToSaveOf({ modules_to_save: null }), []);
  assert.throws(() => modulesToSaveOf({ modules_to_save: "score" }), /modules_to_save: expected a list of names/);
});

const Known = z.object({
  peft_type: z.literal("LORA"),
  r: z.int().min(1),
  lora_alpha: z.number(),
  rank_pattern: z.record(z.string().regex(/^\w+$/, "expected a module name"), z.int()).default({}),
  target_modules: z.array(z.string()),
  base_model_name_or_path: z.string().nullable(),
});

test("keys that a method does not know may be there as long as they are not used", () => {
  const json = {
    ...config,
    auto_mapping: null,
    megatron_core: "megatron.core",
    loftq_config: {},
    lora_bias: false,
    qalora_group_size: 16,
    key_of_the_future: null,
  };
  assert.deepEqual(checkAdapterConfig("x", json, Known), { ...config, rank_pattern: {} });
  const bad: [string, unknown, RegExp][] = [
    ["lora_bias", true, /x: "lora_bias" is set/],
    ["key_of_the_future", 1, /x: "key_of_the_future" is set/],
    ["toString", 1, /x: "toString" is set/],
    ["r", 0, /x: r: /],
    ["r", "8", /x: r: /],
    ["lora_alpha", Number.NaN, /x: lora_alpha: /],
    ["target_modules", [1], /x: target_modules\.0: /],
    ["rank_pattern", { "(a+)+b": 4 }, /x: rank_pattern\.\(a\+\)\+b: expected a module name/],
  ];
  for (const [key, value, reason] of bad) {
    assert.throws(
      () => checkAdapterConfig("x", { ...config, [key]: value }, Known),
      (error) => {
        assert(error instanceof ModelError, String(error));
        assert.match(error.message, reason);
        return true;
      },
    );
  }
});

test("keys by which a config could run code are refused by name", async (t) => {
  const folder = temporaryFolder(t);
  await saveAdapter(folder, config, tensors);
  const poison: [string, unknown][] = [
    ["auto_mapping", { parent_library: "os", base_model_class: "x" }],
    ["auto_mapping", { parent_library: "transformers.models.llama", base_model_class: "x", more: 1 }],
    ["auto_mapping", { parent_library: "transformers.x; import os", base_model_class: "x" }],
    ["megatron_core", "evil"],
    ["megatron_config", { a: 1 }],
    ["tokenizer_kwargs", { trust_remote_code: true }],
    ["auto_map", { AutoModel: "evil.M" }],
    ["custom_pipelines", { a: {} }],
  ];
  for (const [key, value] of poison) {
    writeFileSync(join(folder, "adapter_config.json"), JSON.stringify({ ...config, [key]: value }));
    await assert.rejects(openAdapter(folder), new RegExp(`"${key}" is refused`));
  }
  writeFileSync(join(folder, "adapter_config.json"), "{}");
  await assert.rejects(openAdapter(folder), /peft_type is missing/);
  writeFileSync(join(folder, "adapter_config.json"), '{"peft_type":"LORA","__proto__":{"r":1}}');
  assert.deepEqual(Object.keys((await openAdapter(folder)).config).sort(), ["__proto__", "peft_type"]);
});

test("pickles, foreign names and missing files are refused", async (t) => {
  const folder = temporaryFolder(t);
  await assert.rejects(openAdapter(folder), /no adapter here/);
  await assert.rejects(openAdapter(join(folder, "gone")), /no adapter here/);
  await saveAdapter(folder, config, tensors);
  renameSync(join(folder, "adapter_model.safetensors"), join(folder, "adapter_model.bin"));
  await assert.rejects(openAdapter(folder), /adapter_model\.bin: a PyTorch pickle.*'adapter_model\.safetensors'/);
  const header = JSON.stringify({ "lora_A.weight": { dtype: "F32", shape: [], data_offsets: [0, 4] } });
  const length = Buffer.alloc(8, 0);
  length.writeUInt32LE(header.length);
  writeFileSync(join(folder, "adapter_model.safetensors"), Buffer.concat([length, Buffer.from(header), Buffer.alloc(4)]));
  await assert.rejects(openAdapter(folder), /"lora_A\.weight" does not begin with/);
});

test("values that are not finite are refused", async (t) => {
  const folder = temporaryFolder(t);
  const half = (name: string, dtype: "f16" | "bf16", bits: number[]): TensorSource => ({
    name,
    dtype,
    shape: [bits.length],
    data: () => new Uint8Array(new Uint16Array(bits).buffer),
  });
  const broken = [
    floats("nan", [3], [1, 2, Number.NaN]),
    floats("infinite", [1], [Number.NEGATIVE_INFINITY]),
    floats("largest", [2], [3.4028234663852886e38, -0]),
    half("f16.largest", "f16", [0x7bff, 0xfbff]),
    half("f16.infinite", "f16", [0, 0xfc00]),
    half("bf16.largest", "bf16", [0x7f7f, 0x7c00]),
    half("bf16.nan", "bf16", [0x7fc0]),
  ];
  for (const tensor of broken) {
    const isRight = tensor.name.endsWith("largest");
    const saved = saveAdapter(join(folder, tensor.name), config, [tensor]);
    if (isRight) await saved;
    else await assert.rejects(saved, { code: "DIVERGED", message: new RegExp(`tensor ".*${tensor.name}" is not finite`) });
    assert.equal(existsSync(join(folder, tensor.name, "adapter_model.safetensors")), isRight);
  }
  const unchecked = broken.map((tensor) => ({ ...tensor, isOpaque: true }));
  await saveAdapter(folder, config, unchecked);
  const adapter = await openAdapter(folder);
  for (const name of ["largest", "f16.largest", "bf16.largest"]) await adapter.readTensor(name);
  await assert.rejects(adapter.readTensor("nan"), /nan: value 2 is not a finite number/);
  for (const name of ["infinite", "f16.infinite", "bf16.nan"])
    await assert.rejects(adapter.readTensor(name), /not a finite number/);
});

test("checkTensors lists missing, leftover and misshapen tensors", () => {
  const expected = new Map([
    ["a", [2, 3]],
    ["b", [1]],
    ["c", [1]],
  ]);
  const actual = new Map([
    ["a", { shape: [3, 2] }],
    ["b", { shape: [1] }],
    ["d", { shape: [1] }],
  ]);
  assert.throws(
    () => checkTensors("x", expected, actual),
    /x: .*missing: c; left over: d; of another shape: a is \[3,2\], expected \[2,3\]\./,
  );
  checkTensors("x", new Map([["b", [1]]]), new Map([["b", { shape: [1] }]]));
  const many = new Map(Array.from({ length: 9 }, (_, i) => [`t${i}`, [1]]));
  assert.throws(() => checkTensors("x", many, new Map()), /t4, … \(9 in all\)/);
});
