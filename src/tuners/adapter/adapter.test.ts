import assert from "node:assert/strict";
import test from "node:test";
import { Rng } from "../../core/rng.js";
import { SymbolicDevice } from "../../core/symbolic.js";
import { Tensor, unscoped } from "../../core/tensor.js";
import { ConfigError } from "../../errors.js";
import { buildModel } from "../../models/load.js";
import { AdaptedResidual } from "./adapted-residual.js";
import { adapter } from "./adapter.js";
import { AdapterConfig } from "./config.js";

const parse = (settings: Record<string, unknown> = {}) => AdapterConfig.parse(settings);

test("the three kinds are AdapterHub's double_seq_bn, seq_bn and par_bn; what is set wins", () => {
  const { adapter_config, ...houlsby } = parse();
  assert.equal(adapter_config, "houlsby");
  assert.deepEqual(houlsby, {
    mh_adapter: true,
    output_adapter: true,
    reduction_factor: 16,
    non_linearity: "swish",
    is_parallel: false,
    scaling: 1,
    original_ln_before: false,
    original_ln_after: true,
    residual_before_ln: true,
    ln_before: false,
    ln_after: false,
    adapter_residual_before_ln: false,
    dropout: 0,
    leave_out: [],
    init_weights: "bert",
  });
  assert.deepEqual(parse({ adapter_config: "pfeiffer" }), {
    ...houlsby,
    adapter_config: "pfeiffer",
    mh_adapter: false,
    non_linearity: "relu",
    original_ln_before: true,
  });
  assert.deepEqual(parse({ adapter_config: "parallel", reduction_factor: 8, dropout: null }), {
    ...houlsby,
    adapter_config: "parallel",
    mh_adapter: false,
    non_linearity: "relu",
    is_parallel: true,
    reduction_factor: 8,
    scaling: 4,
    init_weights: "mam_adapter",
  });
});

test("settings that would lose the residual are refused, with what to do", () => {
  const problem = (settings: Record<string, unknown>) => AdapterConfig.safeParse(settings).error?.issues[0]?.message;
  assert.match(problem({ original_ln_after: false }) ?? "", /original_ln_before must be set/);
  assert.match(problem({ adapter_config: "parallel", original_ln_after: false }) ?? "", /nothing else adds the residual/);
  assert.equal(problem({ original_ln_before: true, original_ln_after: false, residual_before_ln: false }), undefined);
});

/** A Llama with Llama-2-7B's layers, as many as wanted, that has no memory. */
function llama2(layers: number) {
  const config = {
    ...{ model_type: "llama", vocab_size: 32000, hidden_size: 4096, intermediate_size: 11008, num_hidden_layers: layers },
    ...{ num_attention_heads: 32, num_key_value_heads: 32, max_position_embeddings: 4096, rms_norm_eps: 1e-5 },
  };
  const model = buildModel(new SymbolicDevice(), config, "llama-2");
  for (const [, parameter] of model.namedParameters())
    parameter.value = unscoped(() => Tensor.empty(model.device, parameter.shape));
  return model;
}

const sizes = (parameters: Iterable<[string, { size: number }]>) => [...parameters].reduce((sum, [, { size }]) => sum + size, 0);

test("share of Llama-2-7B's parameters that trains at the defaults: 1 to 5 %; of the other kinds", () => {
  const share = (settings: Record<string, unknown>) => {
    const [one, two] = [1, 2].map((layers) => {
      const model = llama2(layers);
      adapter.bind(parse(settings)).apply(model, new Rng(0));
      return { trainable: sizes(model.trainableParameters()), all: sizes(model.namedParameters()) };
    });
    const of32Layers = (key: "trainable" | "all") => one![key] + 31 * (two![key] - one![key]);
    return (100 * of32Layers("trainable")) / of32Layers("all");
  };
  assert.equal(share({}).toFixed(2), "1.96");
  assert.equal(share({ adapter_config: "pfeiffer" }).toFixed(2), "0.99");
  assert.equal(share({ adapter_config: "parallel" }).toFixed(2), "7.38");
});

test("adapters stand where the settings say, as wide as they say", () => {
  const model = llama2(3);
  const settings = { reduction_factor: { 0: 64, default: 4096 * 2 }, leave_out: [1] };
  adapter.bind(parse({ ...settings, init_weights: "mam_adapter" })).apply(model, new Rng(0));
  const adapters = [...model.namedModules()].filter(([, module]) => module instanceof AdaptedResidual);
  const widths = adapters.map(([path, module]) => [path, (module as AdaptedResidual).adapter_up.inFeatures]);
  assert.deepEqual(widths, [
    ["model.layers.0.attention_residual", 64],
    ["model.layers.0.mlp_residual", 64],
    ["model.layers.2.attention_residual", 1], // a bottleneck is never empty
    ["model.layers.2.mlp_residual", 1],
  ]);
  const trainable = [...model.trainableParameters().keys()];
  assert.equal(trainable.length, 4 * 4);
  assert.ok(trainable.every((name) => /residual\.adapter_(down\.0|up)\.(weight|bias)$/.test(name)));
});

for (const [settings, message] of [
  [{ leave_out: [0, 2] }, /leave_out: expected numbers of layers from 0 to 1, got 2/],
  [{ reduction_factor: { 2: 8, default: 4 } }, /reduction_factor: expected numbers of layers from 0 to 1, got 2/],
  [{ reduction_factor: { first: 8, default: 4 } }, /reduction_factor: expected numbers of layers/],
  [{ reduction_factor: { 0: 8 } }, /reduction_factor: says nothing of layer 1/],
  [{ leave_out: [0, 1] }, /leave no place for an adapter/],
  [{ mh_adapter: false, output_adapter: false }, /leave no place for an adapter/],
] as const)
  test(`refused on two layers: ${JSON.stringify(settings)}`, () => {
    const apply = () => adapter.bind(parse({ ...settings, init_weights: "mam_adapter" })).apply(llama2(2), new Rng(0));
    assert.throws(apply, (error: Error) => error instanceof ConfigError && message.test(error.message));
  });
