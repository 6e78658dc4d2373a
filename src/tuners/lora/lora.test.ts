import assert from "node:assert/strict";
import test from "node:test";
import { Rng } from "../../core/rng.js";
import { SymbolicDevice } from "../../core/symbolic.js";
import { differentiate, record } from "../../core/tape.js";
import { scope, Tensor, unscoped } from "../../core/tensor.js";
import { loadEngine } from "../../engine/load.js";
import { ConfigError, ModelError } from "../../errors.js";
import type { TensorEntry } from "../../io/model-files.js";
import type { LanguageModel } from "../../models/language-model.js";
import { buildModel } from "../../models/load.js";
import { Linear } from "../../nn/linear.js";
import { Parameter } from "../../nn/module.js";
import { quantizedBase, rounded } from "../quantized-base.js";
import { adaptedLinears } from "./adapted.js";
import { LoraConfig } from "./config.js";
import { DoraLinear } from "./dora-linear.js";
import { changedWeight, freshFactors } from "./factors.js";
import { loftq } from "./loftq.js";
import { lora, mergeForUse } from "./lora.js";
import { LoraLinear } from "./lora-linear.js";
import { peftLora } from "./peft-lora.js";
import { PissaLinear } from "./pissa-linear.js";
import { balancedFactors } from "./svd.js";

const device = { kernels: loadEngine(), compute: "f32" } as const;
const tiny = {
  ...{
    model_type: "llama",
    vocab_size: 10,
    hidden_size: 64,
    intermediate_size: 128,
    num_hidden_layers: 3,
    num_attention_heads: 4,
  },
  ...{ attention_bias: true, tie_word_embeddings: true },
};

/** A model on shapes alone. */
function sketch(config: Readonly<Record<string, unknown>> = tiny): LanguageModel {
  const symbolic = new SymbolicDevice();
  const model = buildModel(symbolic, config, "test");
  for (const [, parameter] of model.namedParameters()) parameter.value = unscoped(() => Tensor.empty(symbolic, parameter.shape));
  return model;
}

function applied(settings: Readonly<Record<string, unknown>>, config = tiny): LanguageModel {
  const model = sketch(config);
  lora.bind(LoraConfig.parse(settings)).apply(model, new Rng(1));
  return model;
}

const pathsOf = (model: LanguageModel) => adaptedLinears(model).map(([path]) => path);

function randomTensor(shape: readonly number[], seed: number, scale = 1): Tensor {
  const rng = new Rng(seed);
  const size = shape.reduce((product, length) => product * length, 1);
  return unscoped(() =>
    Tensor.from(
      device,
      Float32Array.from({ length: size }, () => scale * rng.normal()),
      shape,
    ),
  );
}

function randomLinear(inFeatures: number, outFeatures: number, seed: number): Linear {
  const weight = randomTensor([outFeatures, inFeatures], seed, 0.3);
  return new Linear(inFeatures, outFeatures, {
    weight: new Parameter(weight.shape, weight),
    bias: new Parameter([outFeatures], randomTensor([outFeatures], seed + 1)),
  });
}

test("an output projection gives the log-probabilities and the cross-entropy of what its forward gives", async () => {
  const [rows, width, vocab] = [3, 8, 11];
  const plain = () => new Linear(width, vocab, { weight: new Parameter([vocab, width], randomTensor([vocab, width], 3, 0.5)) });
  const factors = { a: randomTensor([2, width], 4), b: randomTensor([vocab, 2], 5) };
  const pissa = new PissaLinear(plain(), 2, 2, { scaling: 2, dropout: 0 }, new Rng(6));
  device.kernels.scale(factors.b.id, pissa.lora_B.weight.value.id, 1, factors.b.size, true);
  const heads = { plain: plain(), lora: new LoraLinear(plain(), factors, { scaling: 0.5, dropout: 0 }), pissa };
  const x = randomTensor([rows, width], 7);
  const targets = Int32Array.of(10, 0, 4);
  for (const [name, head] of Object.entries(heads)) {
    const logits = await scope(() => head.forward(x)).read();
    const expected = (row: number, temperature: number) => {
      const scores = Array.from(logits.subarray(row * vocab, (row + 1) * vocab), (logit) => logit / temperature);
      return scores[targets[row]!]! - Math.log(scores.reduce((sum, score) => sum + Math.exp(score), 0));
    };
    for (const temperature of [1, 0.5])
      for (const [row, logp] of (await scope(() => head.logProbs(x, targets, temperature)).read()).entries())
        assert.ok(Math.abs(logp - expected(row, temperature)) < 1e-4, `${name}, row ${row}: ${logp}`);
    const loss = await scope(() => head.crossEntropy(x, targets)).item();
    assert.ok(Math.abs(loss + expected(0, 1) + expected(1, 1) + expected(2, 1)) < 1e-4, `${name}: ${loss}`);
  }
  assert.throws(() => randomLinear(width, vocab, 1).logProbs(x, targets), /logProbs: expected an output projection without bias/);
});

test("lora_target: all, ends of names, whole paths, a regular expression; without what is excluded or in other layers", () => {
  for (const settings of [{}, { lora_target: "all-linear" }]) assert.equal(pathsOf(applied(settings)).length, 21);
  assert.deepEqual(pathsOf(applied({ lora_target: "q_proj, layers.1.mlp.up_proj" })), [
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
    "model.layers.2.self_attn.q_proj",
  ]);
  assert.deepEqual(pathsOf(applied({ lora_target: "model\\.layers\\.[02]\\..*\\.(k|v)_proj", exclude_modules: ".*0.*v_proj" })), [
    "model.layers.0.self_attn.k_proj",
    "model.layers.2.self_attn.k_proj",
    "model.layers.2.self_attn.v_proj",
  ]);
  for (const lora_target of ["(?i)MODEL\\.layers\\.0\\..*\\.(?P<which>k|v)_PROJ", "model.layers.0++.self_attn.[kv]_proj\\Z"])
    assert.deepEqual(pathsOf(applied({ lora_target })), ["model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"]);
  assert.deepEqual(pathsOf(applied({ lora_target: ["o_proj"], layers_to_transform: [0, 2], layers_pattern: "layers" })), [
    "model.layers.0.self_attn.o_proj",
    "model.layers.2.self_attn.o_proj",
  ]);
  assert.ok(!pathsOf(applied({ additional_target: "self_attn" })).some((path) => path.includes("self_attn")));
});

test("the output projection and tables of vectors are adapted where they are named, not by all; of a classifier neither head", () => {
  const named = (settings: Record<string, unknown>) =>
    [...applied(settings).trainableParameters().keys()].filter((name) => !name.includes("layers"));
  assert.deepEqual(named({}), []);
  assert.deepEqual(named({ lora_target: "lm_head,embed_tokens" }), [
    "model.embed_tokens.lora_embedding_A",
    "model.embed_tokens.lora_embedding_B",
    "lm_head.lora_A.weight",
    "lm_head.lora_B.weight",
  ]);
  assert.deepEqual(named({ lora_target: ".*(head|up_proj)" }), ["lm_head.lora_A.weight", "lm_head.lora_B.weight"]);
  const classifier = { ...tiny, architectures: ["LlamaForSequenceClassification"] };
  assert.throws(() => applied({ lora_target: "lm_head" }, classifier), /no Linear layer is named "lm_head"/);
  assert.throws(() => applied({ lora_target: "score" }, classifier), /no Linear layer is named "score"/);
});

test("settings that match nothing, or contradict each other, are told", () => {
  const refused: [settings: Record<string, unknown>, message: RegExp][] = [
    [{ lora_target: "query" }, /lora_target: no Linear layer is named "query"\. There are: down_proj, .*, v_proj, or all/],
    [{ lora_target: "_proj" }, /no Linear layer is named "_proj"/],
    [{ lora_target: ".*query" }, /lora_target: the regular expression ".\*query" matches the path of no Linear layer/],
    [{ lora_target: "q_proj", exclude_modules: "q_proj" }, /lora_target: no Linear layer is left/],
    [{ lora_target: "(" }, /lora_target: the regular expression "\(" has, at character 1, a group that is not closed/],
    [{ lora_target: "(q)\\1_proj" }, /"\\1", which has no equal in JavaScript/],
    [{ lora_target: "(?x)q_proj" }, /the flag "x"/],
    [{ exclude_modules: "query" }, /exclude_modules: no Linear layer is named "query"/],
    [{ exclude_modules: ".*query" }, /exclude_modules: the regular expression/],
    [{ layers_to_transform: 7 }, /layers_to_transform: no Linear layer is in a layer of the number 7/],
    [{ layers_to_transform: [0, 3] }, /of the number 3/],
    [
      { layers_to_transform: 0, layers_pattern: ["layers", "blocks"] },
      /layers_pattern: .* list of layers that is called "blocks"/,
    ],
    [{ layers_pattern: "layers" }, /layers_pattern names the list of modules that layers_to_transform counts in/],
    [
      { rank_pattern: { q_prj: 2 } },
      /rank_pattern: "q_prj" is the name of no adapted layer\. There are: down_proj, .*; a whole path is like model\.layers\.0/,
    ],
    [{ alpha_pattern: { "^q_proj": 2 } }, /alpha_pattern: "\^q_proj" is the name of no adapted layer/],
    [{ alpha_pattern: { proj: 2 } }, /alpha_pattern: "proj" is the name of no/],
    [{ lora_target: "q_proj", rank_pattern: { k_proj: 2 } }, /"k_proj" is the name of no adapted layer\. There are: q_proj/],
    [{ rank_pattern: { "(?i)Q_PROJ": 2 } }, /rank_pattern: "\(\?i\)Q_PROJ": flags for the whole pattern/],
    [{ rank_pattern: { "q_proj)|(k_proj": 2 } }, /rank_pattern: .* a parenthesis too many/],
    [{ rank_pattern: { "(([a-z_.0-9]*)*)*q_proj": 2 } }, /matching a regular expression with the names of layers took more than/],
    [{ lora_target: "((.*)*)*x" }, /matching a regular expression with the names of layers took more than/],
    [{ rank_pattern: { "(": 4 } }, /rank_pattern: .* a group that is not closed/],
    [
      { additional_target: "head" },
      /additional_target: no module is named "head"\. At the top of the model there are: model, lm_head/,
    ],
    [{ use_dora: true, pissa_init: true }, /use_dora and pissa_init cannot be combined/],
    [
      { lora_target: "embed_tokens", use_dora: true },
      /use_dora does not work for model\.embed_tokens: leave it out of lora_target/,
    ],
    [{ lora_target: "lm_head", use_dora: true }, /use_dora does not work for lm_head/],
    [{ lora_target: "q_proj,embed_tokens", pissa_init: true }, /pissa_init does not work for model\.embed_tokens/],
    [{ lora_target: "q_proj,embed_tokens", loraplus_lr_ratio: 2 }, /loraplus_lr_ratio does not work for model\.embed_tokens/],
    [{ loftq_init: true }, /loftq_init makes up for what quantizing loses/],
    [{ pissa_init: true, lora_rank: 65 }, /lora_rank: a weight of 64 × 64 has no 65 singular vectors/],
  ];
  for (const [settings, message] of refused)
    assert.throws(
      () => applied(settings),
      (error) => error instanceof ConfigError && message.test(error.message),
      String(message),
    );
});

test("ranks, alphas and rates follow their patterns", () => {
  const settings = { lora_rank: 4, rank_pattern: { "layers\\.1\\..*": 2, q_proj: 6 }, alpha_pattern: { v_proj: 3 } };
  const scalings = new Map(
    adaptedLinears(applied(settings)).map(([path, layer]) => [path, [layer.lora_A.outFeatures, layer.scaling]]),
  );
  assert.deepEqual(scalings.get("model.layers.1.self_attn.q_proj"), [2, 4]);
  assert.deepEqual(scalings.get("model.layers.0.self_attn.q_proj"), [6, 8 / 6]);
  assert.deepEqual(scalings.get("model.layers.0.self_attn.v_proj"), [4, 3 / 4]);
  const rooted = adaptedLinears(applied({ ...settings, use_rslora: true })).find(([path]) =>
    path.endsWith("0.self_attn.v_proj"),
  )!;
  assert.equal(rooted[1].scaling, 3 / 2);

  const faster = applied({ loraplus_lr_ratio: 16, use_dora: true, additional_target: "lm_head" }).trainableParameters();
  const scaleOf = (name: string) => faster.get(name)!.learningRateScale;
  assert.equal(scaleOf("model.layers.0.mlp.up_proj.lora_A.weight"), 1);
  assert.equal(scaleOf("model.layers.0.mlp.up_proj.lora_B.weight"), 16);
  assert.equal(scaleOf("model.layers.0.mlp.up_proj.lora_magnitude_vector"), 16);
  assert.equal(scaleOf("lm_head.weight"), 1);
});

test("bias and additional_target train copies; the base keeps its own", () => {
  const trains = (settings: Record<string, unknown>) =>
    [...applied({ lora_target: "q_proj", ...settings }).trainableParameters()].filter(([name]) => !name.includes("lora_"));
  assert.deepEqual(trains({}), []);
  assert.deepEqual(
    trains({ bias: "lora_only" }).map(([name]) => name),
    [0, 1, 2].map((i) => `model.layers.${i}.self_attn.q_proj.base_layer.bias`),
  );
  assert.equal(trains({ bias: "all" }).length, 12);
  const [head] = trains({ additional_target: "lm_head" });
  assert.equal(head![0], "lm_head.weight");
  assert.ok(head![1].original !== null && !head![1].original.requiresGrad);
});

test("the share of Llama-2-7B that trains at the defaults is what the guide says: 0.1 to 1 percent", () => {
  const llama7b = {
    ...{ model_type: "llama", vocab_size: 32000, hidden_size: 4096, intermediate_size: 11008, num_hidden_layers: 32 },
    ...{ num_attention_heads: 32, tie_word_embeddings: false },
  };
  const model = applied({}, llama7b as unknown as typeof tiny);
  const count = (parameters: Iterable<[string, Parameter]>) => [...parameters].reduce((total, [, { size }]) => total + size, 0);
  const share = count(model.trainableParameters()) / count(model.namedParameters());
  assert.equal(count(model.trainableParameters()), 19_988_480);
  assert.ok(share > 0.001 && share < 0.01, String(share));
});

test("DoRA's gradients are central differences of its value, with the norm held still", async () => {
  const [inFeatures, outFeatures, rank, rows] = [12, 10, 3, 7];
  const base = randomLinear(inFeatures, outFeatures, 1);
  const layer = new DoraLinear(base, freshFactors(base, rank, new Rng(2)), { scaling: 0.7, dropout: 0 });
  const values = {
    a: await layer.lora_A.weight.value.read(),
    b: await randomTensor([outFeatures, rank], 3, 0.3).read(),
    m: (await layer.lora_magnitude_vector.value.read()).map((m, i) => m * (1 + 0.1 * i)),
    x: await randomTensor([rows, inFeatures], 4).read(),
    w: await base.weight.value.read(),
    bias: await base.bias!.value.read(),
    weights: await randomTensor([rows, outFeatures], 5).read(),
  };
  device.kernels.write(layer.lora_B.weight.value.id, 0, values.b);
  device.kernels.write(layer.lora_magnitude_vector.value.id, 0, values.m);
  /** Σ weights · y in f64; the direction's length is taken at `at`. */
  const loss = ({ a, b, m, x }: typeof values, at: typeof values) => {
    const changed = (from: typeof values, o: number, i: number) => {
      let product = 0;
      for (let r = 0; r < rank; r++) product += from.b[o * rank + r]! * from.a[r * inFeatures + i]!;
      return values.w[o * inFeatures + i]! + 0.7 * product;
    };
    let total = 0;
    for (let o = 0; o < outFeatures; o++) {
      let squares = 0;
      for (let i = 0; i < inFeatures; i++) squares += changed(at, o, i) ** 2;
      for (let t = 0; t < rows; t++) {
        let y = 0;
        for (let i = 0; i < inFeatures; i++) y += x[t * inFeatures + i]! * changed({ ...values, a, b }, o, i);
        total += values.weights[t * outFeatures + o]! * ((m[o]! / Math.sqrt(squares)) * y + values.bias[o]!);
      }
    }
    return total;
  };

  const x = unscoped(() => Tensor.from(device, values.x, [rows, inFeatures]));
  x.requiresGrad = true;
  const weights = unscoped(() => Tensor.from(device, values.weights, [rows, outFeatures]));
  const value = differentiate(() => {
    const y = layer.forward(x);
    const total = Tensor.empty(device, [1]);
    device.kernels.matmul(y.id, weights.id, "f32", total.id, 1, 1, y.size, 1, false, "f32");
    return record(total, [y], [], (_dy, grads) =>
      grads.into(y, (dy, accumulate) => device.kernels.scale(weights.id, dy, 1, y.size, accumulate)),
    );
  });
  assert.ok(Math.abs((await value.item()) - loss(values, values)) < 1e-4);
  const gradients = {
    a: await layer.lora_A.weight.value.grad!.read(),
    b: await layer.lora_B.weight.value.grad!.read(),
    m: await layer.lora_magnitude_vector.value.grad!.read(),
    x: await x.grad!.read(),
  };
  for (const [name, gradient] of Object.entries(gradients) as [keyof typeof gradients, Float32Array][]) {
    const scale = Math.max(...gradient.map(Math.abs));
    for (const i of gradient.keys()) {
      const moved = (by: number) => ({ ...values, [name]: values[name].map((v, j) => (j === i ? v + by : v)) });
      const expected = (loss(moved(1e-2), values) - loss(moved(-1e-2), values)) / 2e-2;
      assert.ok(
        Math.abs(gradient[i]! - expected) < 1e-3 * scale,
        `gradient of ${name}[${i}]: ${gradient[i]}, expected ${expected}`,
      );
    }
  }
  layer.dispose();
});

test("PiSSA's factors are the principal part of a weight, exact where all directions are carried along", async () => {
  const [rows, columns, rank] = [40, 24, 5];
  // Singular values 2⁰, 2⁻¹, …: rank-one parts along the rows of a Fourier basis, which is orthonormal.
  const basis = (n: number, k: number, i: number) =>
    Math.sqrt((k === 0 ? 1 : 2) / n) * Math.cos((Math.PI * k * (2 * i + 1)) / (2 * n));
  const part = (terms: number) =>
    Float32Array.from({ length: rows * columns }, (_, at) => {
      let value = 0;
      for (let k = 0; k < terms; k++)
        value += 2 ** -k * basis(rows, k, Math.floor(at / columns)) * basis(columns, k, at % columns);
      return value;
    });
  const w = unscoped(() => Tensor.from(device, part(20), [rows, columns]));
  const zero = unscoped(() => Tensor.zeros(device, [rows, columns]));
  for (const iterations of [-1, 4]) {
    const { a, b } = balancedFactors(w, rank, iterations, 1 / 0.5, new Rng(1));
    const product = changedWeight(zero, [{ a, b, scale: 0.5 }]);
    const [found, expected] = [await product.read(), part(rank)];
    assert.ok(
      found.every((value, i) => Math.abs(value - expected[i]!) < 1e-5),
      `with ${iterations} iterations`,
    );
    const [aSize, bSize] = [Math.hypot(...(await a.read())), Math.hypot(...(await b.read()))];
    assert.ok(Math.abs(aSize - bSize) < 1e-4, "halves of equal size");
  }
});

test("LoftQ's start makes a quantized weight nearer to the whole one than rounding does, and more rounds nearer still", async () => {
  const w = randomTensor([96, 128], 7, 0.05);
  const values = await w.read();
  const errorOf = async (approximation: Tensor) => {
    const found = await approximation.read();
    return Math.hypot(...found.map((value, i) => value - values[i]!));
  };
  const plain = await errorOf(changedWeight(rounded(w, "nf4"), []));
  const errors: number[] = [];
  for (const rounds of [1, 4]) {
    const { quantized, start } = loftq(w, "nf4", { rank: 16, scaling: 2, rounds });
    errors.push(await errorOf(changedWeight(quantized, [{ ...start, scale: 2 }])));
  }
  assert.ok(errors[0]! < 0.9 * plain && errors[1]! < errors[0]!, `${errors} against ${plain}`);
});

test("a quantized base: which weights, and what is said of those that stay", () => {
  const said: string[] = [];
  const model = sketch({ ...tiny, intermediate_size: 96 });
  const settings = { quantization_bit: 4, quantization_type: "nf4", double_quantization: true } as const;
  const keep = quantizedBase(model, settings, (message) => said.push(message), { isWhole: (path) => path.endsWith("o_proj") });
  const typeOf = (name: string, type: "bf16" | "q4_0" = "bf16") =>
    keep(name, Tensor.empty(model.device, new Map(model.namedParameters()).get(name)!.shape, type)).dtype;
  assert.equal(typeOf("model.layers.0.self_attn.q_proj.weight"), "nf4");
  assert.equal(typeOf("model.layers.0.self_attn.o_proj.weight"), "bf16");
  assert.equal(typeOf("model.embed_tokens.weight"), "bf16");
  assert.deepEqual(said, []);
  for (const layer of [0, 1]) assert.equal(typeOf(`model.layers.${layer}.mlp.down_proj.weight`), "bf16");
  for (const layer of [0, 1]) assert.equal(typeOf(`model.layers.${layer}.self_attn.k_proj.weight`, "q4_0"), "q4_0");
  assert.match(said[0]!, /rows of 96 are not whole blocks of nf4: model\.layers\.0\.mlp\.down_proj\.weight/);
  assert.match(said.at(-1)!, /the base is quantized already, to q4_0: it is trained on as it is/);
  const eight = quantizedBase(model, { ...settings, quantization_bit: 8 }, assert.fail);
  const bf16 = Tensor.empty(model.device, [64, 64], "bf16");
  assert.equal(eight("model.layers.0.self_attn.q_proj.weight", bf16).dtype, "q8_0");
  const none = quantizedBase(model, { ...settings, quantization_bit: null }, assert.fail);
  const read = Tensor.empty(model.device, [64, 64]);
  assert.equal(none("model.layers.0.self_attn.q_proj.weight", read), read);
});

test("merged for use and taken out again, the model is bit by bit what it was", async () => {
  const model = buildModel(device, tiny, "test");
  let seed = 1;
  for (const [, parameter] of model.namedParameters()) parameter.value = randomTensor(parameter.shape, seed++, 0.1);
  lora.bind(LoraConfig.parse({ use_dora: true })).apply(model, new Rng(2));
  for (const [, { lora_B }] of adaptedLinears(model)) lora_B.weight.value = randomTensor(lora_B.weight.shape, seed++, 0.1);
  const layer = () => (model as unknown as { model: { layers: { mlp: { up_proj: Linear } }[] } }).model.layers[0]!.mlp.up_proj;
  const x = randomTensor([5, 64], 99);
  const run = async () => {
    const y = scope(() => layer().forward(x));
    return await y.read();
  };
  const before = await run();
  const unmerge = mergeForUse(model);
  assert.ok(layer() instanceof Linear);
  const merged = await run();
  assert.ok(merged.every((value, i) => Math.abs(value - before[i]!) < 1e-5));
  unmerge();
  assert.deepEqual(await run(), before);
  model.dispose();
});

test("adapter_config.json names whole modules so that PEFT, which asks for no dot, takes no others", () => {
  const config = LoraConfig.parse({ additional_target: "norm,lm_head" });
  const { modules_to_save } = lora.bind(config).adapter!.toJson(applied({}), { name: "base", config: tiny });
  assert.deepEqual(modules_to_save, ["model.norm", "lm_head"]);
});

test("adapter_config.json: what PEFT writes is understood, what would compute otherwise is refused", () => {
  const entry = (name: string, shape: number[]): [string, TensorEntry] => [
    name,
    { name, shape, dtype: "f32", file: "", offset: 0, bytes: 0 },
  ];
  const tensors = new Map([
    entry("a.q_proj.lora_A.weight", [3, 4]),
    entry("a.q_proj.lora_B.weight", [4, 3]),
    entry("lm_head.weight", [9, 4]),
  ]);
  const json = {
    peft_type: "LORA",
    r: 8,
    lora_alpha: 16,
    modules_to_save: ["head"],
    rank_pattern: { "^a.*q_proj": 3, q_prj: 5 }, // PEFT passes over what matches nothing
    use_rslora: true,
    ...{ task_type: null, auto_mapping: { base_model_class: "LlamaForCausalLM", parent_library: "transformers.models.llama" } },
    ...{ init_lora_weights: "eva", eva_config: { rho: 2 }, corda_config: { verbose: true }, target_parameters: [] },
  };
  const config = peftLora.fromJson(json, tensors);
  assert.deepEqual(config.lora_target, ["a.q_proj"]);
  assert.deepEqual([config.additional_target, config.rank_pattern, config.use_rslora], [["lm_head"], { "^a.*q_proj": 3 }, true]);
  for (const [change, message] of [
    [
      { rank_pattern: { [`(${".|".repeat(30)}.)*x`]: 3 } },
      /matching a regular expression with the names of layers took more than/,
    ],
    [{ alpha_pattern: { "[": 3 } }, /alpha_pattern: .* a class that is not closed/],
    [{ bias: "some" }, /bias/],
    [{ lora_bias: true }, /"lora_bias" is set: the adapter adds a bias after lora_B, which attune does not do/],
    [{ use_qalora: true }, /"use_qalora" is set: the adapter averages/],
    [{ trainable_token_indices: { embed_tokens: [1] } }, /"trainable_token_indices" is set: the adapter has vectors/],
    [{ init_lora_weights: "pissa" }, /init_lora_weights: "pissa" is none of .* other starts change the base/],
    [{ r: 0 }, /: r: /],
    [
      { r: 4, rank_pattern: {} },
      /of another shape: a\.q_proj\.lora_A\.weight: by r and rank_pattern it should have 4 rows, but it is \[3, 4\]/,
    ],
    [{ r: 1e9, rank_pattern: {} }, /by r and rank_pattern it should have 1000000000 rows/],
    [{ r: { a: 1 } }, /: r: /],
    [{ r: 1e300 }, /: r: /],
    [{ lora_alpha: 1e300 }, /: lora_alpha: /],
    [{ modules_to_save: { a: 1 } }, /modules_to_save: expected a list/],
    [{ init_lora_weights: { a: 1 } }, /init_lora_weights/],
  ] as const)
    assert.throws(
      () => peftLora.fromJson({ ...json, ...change }, tensors),
      (error) => error instanceof ModelError && message.test(error.message),
      String(message),
    );
});

test("an adapter without a tensor of LoRA's is refused", () => {
  const tensors = new Map([
    ["lm_head.weight", { name: "", shape: [9, 4], dtype: "f32", file: "", offset: 0, bytes: 0 } as const],
  ]);
  assert.throws(
    () => peftLora.fromJson({ peft_type: "LORA", r: 8, lora_alpha: 16 }, tensors),
    (error) => error instanceof ModelError && /none of the 1 tensors beside it is one .*: lm_head\.weight/.test(error.message),
  );
});
