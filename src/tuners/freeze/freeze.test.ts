import assert from "node:assert/strict";
import test from "node:test";
import { Rng } from "../../core/rng.js";
import { SymbolicDevice } from "../../core/symbolic.js";
import { Tensor, unscoped } from "../../core/tensor.js";
import { ConfigError } from "../../errors.js";
import { buildModel } from "../../models/load.js";
import { FreezeConfig, freeze } from "./freeze.js";

function trained(settings: Readonly<Record<string, unknown>>, changes: Readonly<Record<string, unknown>> = {}): string[] {
  const device = new SymbolicDevice();
  const shape = { vocab_size: 10, hidden_size: 8, intermediate_size: 12, num_hidden_layers: 3, num_attention_heads: 2 };
  const model = buildModel(device, { model_type: "llama", ...shape, ...changes }, "test");
  for (const [, parameter] of model.namedParameters())
    parameter.value = unscoped(() => Tensor.empty(device, parameter.shape, parameter.shape.length === 1 ? "f32" : "bf16"));
  freeze.bind(FreezeConfig.parse(settings)).apply(model, new Rng(0));
  for (const [name, { value, requiresGrad }] of model.namedParameters())
    assert.equal(value.dtype, requiresGrad || value.shape.length === 1 ? "f32" : "bf16", name);
  return [...model.trainableParameters().keys()];
}

const mlp = (layer: number) => ["gate", "up", "down"].map((part) => `model.layers.${layer}.mlp.${part}_proj.weight`);

test("the last layers train, or the first, or parts of them", () => {
  const byDefault = trained({});
  assert.equal(byDefault.length, 18);
  assert.ok(byDefault.every((name) => /^model\.layers\.[12]\./.test(name)));
  assert.deepEqual(trained({ freeze_trainable_layers: -2, freeze_trainable_modules: "mlp" }), [...mlp(0), ...mlp(1)]);
  assert.deepEqual(trained({ freeze_trainable_layers: 1, freeze_trainable_modules: ["q_proj", "input_layernorm"] }), [
    "model.layers.2.self_attn.q_proj.weight",
    "model.layers.2.input_layernorm.weight",
  ]);
});

test("extra modules train beside the layers; a shared weight is found by either name", () => {
  const mlpOfLast = { freeze_trainable_layers: 1, freeze_trainable_modules: "mlp" };
  assert.deepEqual(trained({ ...mlpOfLast, freeze_extra_modules: "lm_head, norm" }), [
    ...mlp(2),
    "model.norm.weight",
    "lm_head.weight",
  ]);
  const tied = { tie_word_embeddings: true };
  assert.deepEqual(trained({ ...mlpOfLast, freeze_extra_modules: "lm_head" }, tied), ["model.embed_tokens.weight", ...mlp(2)]);
});

test("what is not there is told", () => {
  for (const [settings, message] of [
    [{ freeze_trainable_layers: 4 }, /the model has 3 layers, so 4 of them cannot train/],
    [{ freeze_trainable_layers: -4 }, /the model has 3 layers/],
    [
      { freeze_trainable_modules: "attn" },
      /freeze_trainable_modules: nothing there is named "attn"\. There are: .*mlp, .*or all/,
    ],
    [
      { freeze_extra_modules: "q_proj" },
      /freeze_extra_modules: nothing there is named "q_proj"\. There are: embed_tokens, lm_head, model, norm/,
    ],
  ] as const)
    assert.throws(
      () => trained(settings),
      (error) => error instanceof ConfigError && message.test(error.message),
    );
  assert.throws(() => FreezeConfig.parse({ freeze_trainable_layers: 0 }));
});
