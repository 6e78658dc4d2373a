import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Rng } from "../core/rng.js";
import { loadEngine } from "../engine/load.js";
import { AttuneError } from "../errors.js";
import { readGgufHeader } from "../io/gguf/header.js";
import { openModel } from "../io/open-model.js";
import { openSafetensors, readEntry, toTensorEntry } from "../io/safetensors.js";
import { temporaryFolder } from "../io/testing/folders.js";
import { asCausalLM } from "../models/causal-lm.js";
import { loadModel } from "../models/load.js";
import { loadTokenizer } from "../text/load-tokenizer.js";
import { chooseTemplate } from "../text/templates.js";
import { tuners } from "../tuners/index.js";
import { lora } from "../tuners/lora/lora.js";
import { applyAdapter, saveTuned } from "../tuners/tuned-files.js";
import { numberTypes } from "./choices.js";
import { type ExportOptions, exportModel } from "./export.js";
import { driftBetween, logitsOn, probesFor } from "./measure.js";
import { matrixType } from "./number-types.js";

const fixtures = join(import.meta.dirname, "../../../test/fixtures/tiny-llama");
const base = join(fixtures, "tied");
const adapter = join(fixtures, "adapter-final");
const probe = Int32Array.from({ length: 24 }, (_, i) => (i * 37) % 256);

/** What the model in a folder or file says, perhaps with an adapter on it. */
async function says(path: string, adapterFolder?: string, probes: readonly Int32Array[] = [probe]): Promise<Float32Array> {
  const model = asCausalLM(await loadModel({ kernels: loadEngine(), compute: "f32" }, await openModel(path)), "test");
  try {
    if (adapterFolder !== undefined) await applyAdapter(adapterFolder, model, tuners, new Rng(0));
    return await logitsOn(model, probes);
  } finally {
    model.dispose();
  }
}

function differenceOf(a: Float32Array, b: Float32Array, probes: readonly Int32Array[] = [probe]): number {
  return driftBetween(a, b, probes).maxLogitDifference;
}

function exported(t: TestContext, options: Omit<ExportOptions, "out">): [out: string, ExportOptions] {
  const out = join(temporaryFolder(t), "exported");
  return [out, { ...options, out }];
}

test("a merged Hugging Face folder says what the adapter on its base says", async (t) => {
  const [out, options] = exported(t, { model: base, adapter, to: "hf", type: "f32" });
  const { written, drift } = await exportModel(options);
  assert.ok(drift!.maxLogitDifference < 1e-4, `drift ${drift!.maxLogitDifference}`);
  assert.ok(differenceOf(await says(out), await says(base, adapter)) < 1e-4);
  assert.ok(differenceOf(await says(out), await says(base)) > 1e-2, "the adapter changes nothing: this test cannot fail");
  assert.deepEqual([...written].sort(), [
    "README.md",
    "chat_template.jinja",
    "config.json",
    "export_receipt.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
  ]);
  const read = (name: string) => JSON.parse(readFileSync(join(out, name), "utf8")) as Record<string, unknown>;
  assert.equal(read("config.json").dtype, "float32");
  assert.deepEqual(read("generation_config.json").eos_token_id, [258, 256]);
});

test("a Hugging Face folder comes in as many files as asked for, with their index", async (t) => {
  const [out, options] = exported(t, { model: base, adapter, to: "hf", type: "f32", shardBytes: 100_000 });
  const { written } = await exportModel(options);
  const shards = written.filter((name) => name.endsWith(".safetensors"));
  assert.ok(shards.length > 2 && written.includes("model.safetensors.index.json"), written.join());
  assert.equal(differenceOf(await says(out), await says(base, adapter)) < 1e-4, true);

  await assert.rejects(exportModel({ ...options, out: `${out}-2`, to: "gguf" }), /a GGUF file is one file.*shards/);
});

test("bf16 is the default of a Hugging Face folder, in every tensor", async (t) => {
  const [out, options] = exported(t, { model: base, to: "hf" });
  const { type, drift } = await exportModel(options);
  assert.equal(type, "bf16");
  const { tensors } = await openSafetensors(join(out, "model.safetensors"));
  assert.ok([...tensors.values()].every(({ dtype }) => dtype === "BF16"));
  assert.ok(drift!.maxLogitDifference > 0);
});

for (const type of numberTypes)
  for (const name of ["tied", "untied"])
    test(`GGUF in ${type}, ${name}: what is read back says exactly what was measured`, async (t) => {
      const folder = join(fixtures, name);
      const [out, options] = exported(t, { model: folder, to: "gguf", type });
      const { written, drift } = await exportModel(options);
      assert.deepEqual(written, ["export_receipt.json", "model.gguf"]);

      const files = await openModel(join(out, "model.gguf"));
      const types = new Set([...files.tensors.values()].map(({ dtype }) => dtype));
      const expected = { f32: [], f16: ["f16"], bf16: ["bf16"], q8_0: ["f16", "q8_0"], q4_0: ["f16", "q4_0", "q8_0"] };
      // Rows of 80 and 64 are no whole blocks of 256, and rows of 80 none of 32.
      assert.deepEqual(
        [...types].sort(),
        [...({ ...expected, q4_k_m: ["f16", "q5_0", "q8_0"] }[type] as string[]), "f32"].sort(),
      );
      const [from, to] = [await loadTokenizer(await openModel(folder)), await loadTokenizer(files)];
      for (const text of ["<|im_start|>user\nHé, 12!<|im_end|>", " a  b\n"])
        assert.deepEqual(to.encode(text, { special: true }), from.encode(text, { special: true }));
      assert.equal(to.chatTemplate, from.chatTemplate);
      const probes = probesFor({ tokenizer: to, template: chooseTemplate(to).template }, [], {
        vocabSize: 259,
        maxPositions: 64,
      });
      const difference = differenceOf(await says(folder, undefined, probes), await says(files.path, undefined, probes), probes);
      assert.equal(difference, drift!.maxLogitDifference);
      assert.ok(type === "f32" ? difference === 0 : difference > 0, `drift ${difference}`);
      assert.deepEqual(to.stopIds, from.stopIds);
    });

test("Q4_K_M gives more bits where llama.cpp does", () => {
  const mixture = { type: "q4_k_m", layers: 16, isTied: false } as const;
  const of = (name: string, cols = 512) => matrixType(`model.layers.${name}.weight`, [256, cols], mixture);
  const important = Array.from({ length: 16 }, (_, i) => i).filter((i) => of(`${i}.mlp.down_proj`) === "q6_k");
  assert.deepEqual(important, [0, 1, 4, 7, 10, 13, 14, 15]);
  assert.equal(of("0.self_attn.v_proj"), "q6_k");
  assert.equal(of("2.self_attn.v_proj"), "q4_k");
  assert.equal(of("0.self_attn.q_proj"), "q4_k");
  assert.deepEqual([of("0.mlp.down_proj", 576), of("2.mlp.down_proj", 576), of("0.mlp.down_proj", 80)], ["q8_0", "q5_0", "f16"]);
  assert.equal(matrixType("lm_head.weight", [256, 512], mixture), "q6_k");
  assert.equal(matrixType("model.embed_tokens.weight", [256, 512], mixture), "q4_k");
  assert.equal(matrixType("model.embed_tokens.weight", [256, 512], { ...mixture, isTied: true }), "q6_k");
  assert.equal(matrixType("lm_head.weight", [256, 512], { ...mixture, type: "q4_0" }), "q6_k");
  assert.equal(matrixType("lm_head.weight", [256, 512], { ...mixture, type: "q8_0" }), "q8_0");
});

/** An adapter of LoRA with these settings, whose every weight has learnt something. */
async function trainedAdapter(t: TestContext, folder: string, settings: Readonly<Record<string, unknown>>): Promise<string> {
  const out = temporaryFolder(t);
  const files = await openModel(folder);
  const model = await loadModel({ kernels: loadEngine(), compute: "f32" }, files);
  const config = lora.config.parse(settings);
  lora.bind(config).apply(model, new Rng(1));
  const rng = new Rng(2);
  for (const [, { value }] of model.trainableParameters()) {
    const values = (await value.read()).map((number) => number + 0.1 * rng.normal());
    value.device.kernels.write(value.id, 0, values);
  }
  await saveTuned(out, model, lora.bind(config), { name: folder, config: files.config });
  model.dispose();
  return out;
}

const jsonIn = (path: string) => JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;

for (const settings of [
  ...["lm_head", "embed_tokens", "lm_head,embed_tokens"].map((names) => ({ additional_target: names })),
  ...["lm_head", "embed_tokens", "lm_head,embed_tokens"].map((names) => ({ lora_target: names })),
])
  test(`a tied base trained with ${JSON.stringify(settings)} leaves untied, and says what it learnt wherever it is opened`, async (t) => {
    const trained = await trainedAdapter(t, base, settings);
    const expected = await says(base, trained);
    const [folder, toFolder] = exported(t, { model: base, adapter: trained, to: "hf", type: "f32" });
    await exportModel(toFolder);
    assert.equal(jsonIn(join(folder, "config.json")).tie_word_embeddings, false);
    assert.ok(differenceOf(await says(folder), expected) < 1e-3);

    for (const type of ["f32", "q4_0"] as const) {
      const [out, toFile] = exported(t, { model: base, adapter: trained, to: "gguf", type, maxDrift: 1e9 });
      const { drift } = await exportModel(toFile);
      const path = join(out, "model.gguf");
      const typeOf = (name: string) => readGgufHeader(path).tensors.find((tensor) => tensor.name === name)?.dtype;
      const expectedTypes = type === "f32" ? ["f32", "f32"] : ["q4_0", "q8_0"]; // rows of 64 are no whole blocks of Q6_K
      assert.deepEqual([typeOf("token_embd.weight"), typeOf("output.weight")], expectedTypes);
      if (type === "f32") assert.ok(differenceOf(await says(path), expected) < 1e-3);
      else assert.ok(drift!.maxLogitDifference > 0);
    }
  });

test("a tied base stays tied; a head that its file holds beside a tied config leaves as it stands", async (t) => {
  const [tied, options] = exported(t, { model: base, adapter, to: "hf" });
  await exportModel(options);
  assert.equal(jsonIn(join(tied, "config.json")).tie_word_embeddings, true);

  const folder = temporaryFolder(t);
  cpSync(join(fixtures, "untied"), folder, { recursive: true });
  writeFileSync(
    join(folder, "config.json"),
    JSON.stringify({ ...jsonIn(join(folder, "config.json")), tie_word_embeddings: true }),
  );
  const [out, fromOther] = exported(t, { model: folder, to: "hf", type: "f32" });
  await exportModel(fromOther);
  assert.equal(jsonIn(join(out, "config.json")).tie_word_embeddings, false);
  assert.equal(differenceOf(await says(out), await says(join(fixtures, "untied"))), 0);
});

test("drift is measured at hundreds of positions of text of many kinds, or of the rows given", async (t) => {
  const [, options] = exported(t, { model: base, to: "gguf", type: "q4_0", maxDrift: 1e9 });
  const { drift } = await exportModel(options);
  const { positions, maxLogitDifference, meanLogitDifference, divergence, sameToken, textLossBefore, textLossAfter } = drift!;
  assert.equal(positions, 512);
  assert.ok(meanLogitDifference > 0 && meanLogitDifference < maxLogitDifference);
  assert.ok(divergence > 0 && divergence < 1 && sameToken > 0.3 && sameToken < 1, JSON.stringify(drift));
  assert.ok(textLossBefore > 0 && textLossBefore !== textLossAfter);

  const chat = {
    tokenizer: await loadTokenizer(await openModel(base)),
    template: chooseTemplate(await loadTokenizer(await openModel(base))).template,
  };
  const lengths = (vocabSize: number, rows: readonly number[] = [], maxPositions = 4096) => {
    const examples = rows.map((length) => ({
      ids: new Int32Array(length),
      supervised: new Uint8Array(length),
      where: "",
      tokens: length,
    }));
    return probesFor(chat, examples, { vocabSize, maxPositions }).map(({ length }) => length);
  };
  const total = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
  assert.equal(total(lengths(150_000)), 256);
  assert.ok(lengths(150_000).length > 6, "of several kinds");
  assert.deepEqual(lengths(1000, [1000]), [512]);
  assert.deepEqual(lengths(1000, [1000, 20, 1000, 1000, 1000]), [128, 20, 128, 128, 108]);
  assert.deepEqual(lengths(1000, [1000], 100), [100]);
});

test("a comparison of logits by hand", () => {
  const [before, after] = [
    Float32Array.of(Math.log(1), Math.log(3), 0, 0),
    Float32Array.of(Math.log(3), Math.log(1), 0, 0),
  ] as const;
  const drift = driftBetween(before, after, [Int32Array.of(0, 1)]);
  const close = (name: keyof typeof drift, expected: number) =>
    assert.ok(Math.abs(Number(drift[name]) - expected) < 1e-6, `${name}: ${drift[name]} for ${expected}`);
  close("positions", 2);
  close("maxLogitDifference", Math.log(3));
  close("meanLogitDifference", Math.log(3) / 2);
  close("divergence", (0.75 * Math.log(3) - 0.25 * Math.log(3)) / 2);
  close("sameToken", 0.5);
  close("textLossBefore", -Math.log(0.75));
  close("textLossAfter", -Math.log(0.25));
  const broken = Float32Array.of(Number.NaN, 1, 0, 0);
  assert.ok(Number.isNaN(driftBetween(before, broken, [Int32Array.of(0, 1)]).maxLogitDifference));
});

/** A copy of the adapter with other settings. */
function variant(t: TestContext, changes: Record<string, unknown>): string {
  const folder = temporaryFolder(t);
  cpSync(adapter, folder, { recursive: true });
  const path = join(folder, "adapter_config.json");
  writeFileSync(path, JSON.stringify({ ...(JSON.parse(readFileSync(path, "utf8")) as object), ...changes }));
  return folder;
}

async function ggufFloats(path: string, name: string): Promise<Float32Array> {
  const tensor = readGgufHeader(path).tensors.find((each) => each.name === name)!;
  assert.ok(tensor, `${path} has no ${name}`);
  return new Float32Array((await readEntry({ ...tensor, file: path })).buffer);
}

test("a LoRA adapter goes into a GGUF file: names, alpha, and rows in llama.cpp's order", async (t) => {
  const [out, options] = exported(t, { model: base, adapter, to: "gguf-lora" });
  assert.deepEqual(await exportModel(options), { written: ["adapter.gguf"], type: null, drift: null, receipt: null });
  const path = join(out, "adapter.gguf");
  const { metadata, tensors } = readGgufHeader(path);
  assert.deepEqual(
    { ...metadata },
    {
      "general.architecture": "llama",
      "general.type": "adapter",
      "general.name": "adapter-final",
      "adapter.type": "lora",
      "adapter.lora.alpha": 8,
    },
  );
  assert.equal(tensors.length, 2 * 7 * 2);
  const shapeOf = (name: string) => tensors.find((tensor) => tensor.name === name)?.shape;
  assert.deepEqual(shapeOf("blk.1.ffn_down.weight.lora_a"), [4, 80]);
  assert.deepEqual(shapeOf("blk.1.ffn_down.weight.lora_b"), [64, 4]);

  const file = await openSafetensors(join(adapter, "adapter_model.safetensors"));
  const prefix = "base_model.model.model.layers.0.self_attn";
  const own = async (name: string) =>
    new Float32Array((await readEntry(toTensorEntry(file.tensors.get(`${prefix}.${name}.weight`)!))).buffer);
  assert.deepEqual(await ggufFloats(path, "blk.0.attn_q.weight.lora_a"), await own("q_proj.lora_A"));
  assert.deepEqual(await ggufFloats(path, "blk.0.attn_v.weight.lora_b"), await own("v_proj.lora_B"));
  const [q, interleaved] = [await own("q_proj.lora_B"), await ggufFloats(path, "blk.0.attn_q.weight.lora_b")];
  const row = (values: Float32Array, index: number) => values.slice(4 * index, 4 * index + 4);
  assert.deepEqual(row(interleaved, 1), row(q, 8)); // heads of 16: row 1 of a head is its row 8
  assert.deepEqual(row(interleaved, 18), row(q, 17));
});

test("rsLoRA's scaling goes into alpha, other alphas of some layers into their B", async (t) => {
  const changed = variant(t, { use_rslora: true, alpha_pattern: { "layers.1.self_attn.v_proj": 24 } });
  const [out, options] = exported(t, { model: base, adapter: changed, to: "gguf-lora" });
  await exportModel(options);
  const path = join(out, "adapter.gguf");
  assert.equal(readGgufHeader(path).metadata["adapter.lora.alpha"], 16); // 8 · √4
  const [plainOut, plain] = exported(t, { model: base, adapter, to: "gguf-lora" });
  await exportModel(plain);
  const plainPath = join(plainOut, "adapter.gguf");
  for (const [name, factor] of [
    ["blk.0.attn_v.weight.lora_b", 1],
    ["blk.1.attn_v.weight.lora_b", 3],
    ["blk.1.attn_v.weight.lora_a", 1],
  ] as const)
    assert.deepEqual(
      await ggufFloats(path, name),
      (await ggufFloats(plainPath, name)).map((value) => factor * value),
    );
});

test("for Ollama: weights or an adapter, and a Modelfile", async (t) => {
  const [out, options] = exported(t, { adapter, model: base, to: "ollama" });
  assert.deepEqual((await exportModel(options)).written, ["Modelfile", "export_receipt.json", "model.gguf"]);
  assert.match(
    readFileSync(join(out, "Modelfile"), "utf8"),
    /^FROM \.\/model\.gguf\nTEMPLATE """[\s\S]*"""\nPARAMETER stop "<\|im_end\|>"\n/,
  );
  assert.deepEqual(readdirSync(out).sort(), ["Modelfile", "export_receipt.json", "model.gguf"]);

  const [onTop, adapterOptions] = exported(t, { adapter, model: base, to: "ollama", ollamaFrom: "tiny:latest" });
  assert.deepEqual((await exportModel(adapterOptions)).written, ["Modelfile", "adapter.gguf"]);
  assert.match(readFileSync(join(onTop, "Modelfile"), "utf8"), /^FROM tiny:latest\nADAPTER \.\/adapter\.gguf\n/);
});

test("an adapter of QLoRA is merged into the 4-bit base that it was trained on", async (t) => {
  const qlora = variant(t, {});
  const recipe = { model_name_or_path: base, dataset: "x", output_dir: "y", finetuning_type: "qlora" };
  writeFileSync(join(qlora, "recipe.yaml"), JSON.stringify(recipe));
  const notices: string[] = [];
  const [out, options] = exported(t, { model: base, adapter: qlora, to: "hf", type: "f32", onNotice: (m) => notices.push(m) });
  const { drift } = await exportModel(options);
  assert.ok(drift!.maxLogitDifference < 1e-4, `drift ${drift!.maxLogitDifference}`);
  assert.match(notices.join(), /merged into that base, expanded/);
  assert.ok(differenceOf(await says(out), await says(base, adapter)) > 1e-2, "the base was not quantized");
});

test("held-out rows give losses before and after, in the training's own format", async (t) => {
  const data = join(temporaryFolder(t), "rows.jsonl");
  writeFileSync(data, `${JSON.stringify({ instruction: "Where is the cat?", output: "on the mat" })}\n`);
  const [, options] = exported(t, { model: base, adapter, to: "gguf", type: "f32", data });
  const { receipt } = await exportModel(options);
  const { before, readings } = receipt!;
  assert.ok(before.loss! > 0);
  assert.ok(Math.abs(before.loss! - readings[0]!.answers!.loss) < 1e-4);
});

test("what cannot be exported is refused with a way out, and nothing is written", async (t) => {
  const cases: [Omit<ExportOptions, "out">, string, RegExp][] = [
    [{ to: "hf" }, "CONFIG", /name a model, an adapter, or both/],
    [{ to: "hf", model: base, type: "q4_0" }, "CONFIG", /not q4_0, which is a type of GGUF: use --to gguf/],
    [{ to: "gguf-lora", model: base }, "CONFIG", /this writes an adapter, so name one/],
    [{ to: "gguf-lora", model: base, adapter, type: "f16" }, "CONFIG", /an adapter is written in f32/],
    [{ to: "gguf", model: base, ollamaFrom: "x" }, "CONFIG", /no meaning for --to gguf/],
    [
      { to: "gguf", model: base, adapter, maxDrift: 0 },
      "MODEL",
      /changes by .*, more than the limit of 0\. Nothing was written.*--max-drift/,
    ],
    [
      { to: "gguf-lora", model: base, adapter: variant(t, { use_dora: true }) },
      "CONFIG",
      /adds a product to a weight.*peft_type "LORA", use_dora true.*Export a merged model instead/,
    ],
    [
      { to: "gguf-lora", model: base, adapter: await trainedAdapter(t, base, { lora_target: "lm_head" }) },
      "CONFIG",
      /it changes the output projection, which is the embedding in a GGUF file of this base/,
    ],
    [
      { to: "gguf-lora", model: base, adapter: await trainedAdapter(t, base, { lora_target: "q_proj,embed_tokens" }) },
      "CONFIG",
      /it also holds model\.embed_tokens\.lora_embedding_[AB], which is no part of a LoRA of Linear layers/,
    ],
    [{ to: "gguf-lora", model: base, adapter: variant(t, { peft_type: "IA3" }) }, "CONFIG", /LoRA adapters only, .*"IA3"/],
    [{ to: "hf", adapter: variant(t, { base_model_name_or_path: null }) }, "CONFIG", /does not name its base model/],
  ];
  for (const [options, code, message] of cases) {
    const [out, all] = exported(t, options);
    await assert.rejects(exportModel(all), (error: unknown) => {
      assert.ok(error instanceof AttuneError);
      assert.equal(error.code, code);
      assert.match(error.message, message);
      return true;
    });
    assert.throws(() => readdirSync(out), { code: "ENOENT" });
  }
  const parent = temporaryFolder(t);
  const failing = { model: base, adapter, to: "gguf", maxDrift: 0, out: join(parent, "out") } as const;
  await assert.rejects(exportModel(failing), /Nothing was written/);
  assert.deepEqual(readdirSync(parent), []);
  const inUse = temporaryFolder(t);
  writeFileSync(join(inUse, "precious.txt"), "");
  await assert.rejects(exportModel({ to: "hf", model: base, out: inUse }), {
    code: "CHECKPOINT",
    message: /is not empty \(precious\.txt\)/,
  });
});

test("an export that is killed leaves nothing under its name, and the next one removes what it began", async (t) => {
  const parent = temporaryFolder(t);
  const out = join(parent, "out");
  const precious = join(parent, ".tmp-other-1");
  mkdirSync(precious);
  const script = `const { exportModel } = await import(${JSON.stringify(new URL("./export.js", import.meta.url).href)});
    process.stdout.write("ready");
    await exportModel(${JSON.stringify({ model: base, adapter, to: "hf", out })});`;
  for (const delayMs of [0, 40, 80, 120, 160, 200]) {
    const child = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
    const ended = once(child, "exit");
    await once(child.stdout, "data");
    await sleep(delayMs);
    child.kill("SIGKILL");
    await ended;
    if (existsSync(out)) {
      assert.ok(
        existsSync(join(out, "config.json")) && existsSync(join(out, "model.safetensors")),
        `${delayMs} ms: half a folder`,
      );
      rmSync(out, { recursive: true });
    }
  }
  mkdirSync(join(parent, ".tmp-out-999999999"));
  mkdirSync(out); // an empty folder of that name makes room
  await exportModel({ model: base, adapter, to: "hf", out });
  assert.deepEqual(readdirSync(parent).sort(), [".tmp-other-1", "out"]);
  assert.ok(differenceOf(await says(out), await says(base, adapter)) < 0.5);
  const file = join(parent, "file");
  writeFileSync(file, "");
  await assert.rejects(exportModel({ model: base, to: "hf", out: file }), { code: "CHECKPOINT", message: /is no folder/ });
});
