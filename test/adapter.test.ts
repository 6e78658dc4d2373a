import assert from "node:assert/strict";
import test, { describe } from "node:test";
import { Rng } from "../src/core/rng.js";
import { scope, Tensor, unscoped } from "../src/core/tensor.js";
import type { CausalLM } from "../src/models/causal-lm.js";
import { packSequences } from "../src/models/token-batch.js";
import { LayerNorm } from "../src/nn/layer-norm.js";
import { Residual } from "../src/nn/residual.js";
import { AdaptedResidual } from "../src/tuners/adapter/adapted-residual.js";
import { adapter } from "../src/tuners/adapter/adapter.js";
import { AdapterConfig } from "../src/tuners/adapter/config.js";
import { checkGradients, device, engine } from "./support/gradient-check.js";
import { loadTinyLlama, reference } from "./support/tiny-llama.js";

const [width, bottleneck] = [12, 5];

for (const isa of engine.info().tiers)
  describe(`gradients of an adapter against finite differences on ${isa}`, () => {
    // relu has no slope where differences step over its corner; the test of activations has it.
    const cases: Record<string, Record<string, unknown>> = {
      houlsby: {},
      pfeiffer: { adapter_config: "pfeiffer", non_linearity: "gelu" },
      parallel: { adapter_config: "parallel", non_linearity: "gelu" },
      "a factor and norms that train": {
        scaling: "learned",
        ln_before: true,
        ln_after: true,
        adapter_residual_before_ln: true,
        original_ln_before: true,
      },
      "no residual from before": {
        original_ln_before: true,
        original_ln_after: false,
        residual_before_ln: false,
        non_linearity: "tanh",
      },
      "pfeiffer, the model's norm after": { adapter_config: "pfeiffer", non_linearity: "gelu" },
      "houlsby, the model's norm before": {},
    };
    for (const [name, settings] of Object.entries(cases))
      test(name, async () => {
        engine.setIsa(isa);
        const [, place] = /the model's norm (before|after)/.exec(name) ?? [];
        const norms = place === undefined ? {} : { [place]: ones(new LayerNorm(width, 1e-5)) };
        const config = AdapterConfig.parse(settings);
        const fresh = () => new AdaptedResidual(new Residual(norms), device, width, bottleneck, config, new Rng(3));
        const weights = new Map([...fresh().namedParameters()].map(([key, { shape }]) => [key, { shape, scale: 0.5 }]));
        const inputs = { x: { shape: [7, width] }, y: { shape: [7, width] }, ...Object.fromEntries(weights) };
        await checkGradients(inputs, (x, y, ...values) => {
          const residual = fresh();
          for (const [i, [, parameter]] of [...residual.namedParameters()].entries()) parameter.value = values[i]!;
          return residual.forward(x!, y!);
        });
      });
  });

function ones(norm: LayerNorm): LayerNorm {
  for (const parameter of [norm.weight, norm.bias])
    parameter.value = unscoped(() => Tensor.from(device, new Float32Array(width).fill(1), [width]));
  return norm;
}

async function logitsOf(model: CausalLM): Promise<Float32Array> {
  const batch = packSequences(reference.sequences.map(({ ids }) => Int32Array.from(ids)));
  const logits: Tensor = scope(() => model.logits(batch, Int32Array.from(batch.ids.keys())));
  const values = await logits.read();
  logits.dispose();
  return values;
}

for (const kind of ["houlsby", "pfeiffer", "parallel"])
  test(`${kind}: what is nothing at first is the base model; what is drawn from N(0, 0.02²) is nearly that`, async () => {
    const { model } = await loadTinyLlama("tied");
    const base = await logitsOf(model);
    const largest = Math.max(...base.map(Math.abs));
    for (const [init_weights, tolerance] of [
      ["mam_adapter", 0],
      ["bert", 0.1],
      ["houlsby", 0.1],
    ] as const) {
      const { model: adapted } = await loadTinyLlama("tied");
      adapter.bind(AdapterConfig.parse({ adapter_config: kind, init_weights })).apply(adapted, new Rng(1));
      const logits = await logitsOf(adapted);
      const worst = logits.reduce((most, value, i) => Math.max(most, Math.abs(value - base[i]!)), 0);
      assert.ok(worst <= tolerance * largest, `${init_weights}: largest difference ${worst} beside logits up to ${largest}`);
      if (init_weights !== "mam_adapter") assert.ok(worst > 0);
      adapted.dispose();
    }
    model.dispose();
  });
