import { z } from "zod";
import { copyIntoColumns, firstOf } from "../../core/linalg.js";
import { scope, Tensor } from "../../core/tensor.js";
import { adapterConfigName, checkSize, settingsFrom } from "../../io/adapters/adapter-folder.js";
import { checkAdapterConfig, peft } from "../../io/adapters/peft.js";
import type { LanguageModel } from "../../models/language-model.js";
import { continueSequences } from "../../models/token-batch.js";
import { defineTuner } from "../tuner.js";
import { checkStart, peftVirtualTokens, startTokens, virtualTokenSettings } from "../virtual-tokens.js";
import { PrefixEncoder, projectionWidth } from "./prefix-encoder.js";

/**
 * Prefix-Tuning: keys and values that every sequence finds before its own in each layer train, and nothing else does.
 *
 * Source: Li & Liang 2021, arXiv:2101.00190, §4; without the projection P-Tuning v2, Liu et al. 2021, arXiv:2110.07602. The paper always projects; like
 * PEFT we do not unless told to: Llama-2-7B then trains 5 million parameters instead of 137. With and without it the prefix starts as the keys and values of a
 * text, as the paper advises for little data (§7.4): a random one, as in PEFT, multiplies the loss of the first step.
 */
export const PrefixTuningConfig = z
  .strictObject({
    ...virtualTokenSettings,
    prefix_projection: z
      .boolean()
      .default(false)
      .describe("make keys and values by a two-layer network while they train, as in the paper; else they train directly"),
  })
  .superRefine((config, context) => checkStart(config, context));
export type PrefixTuningConfig = z.output<typeof PrefixTuningConfig>;

export const prefixTuning = defineTuner<PrefixTuningConfig>({
  name: "prefix-tuning",
  summary: "trains keys and values that stand before every text in each layer; the model itself stays as it is",
  config: PrefixTuningConfig,
  defaults: [
    {
      where: { words: "with `prefix_projection`", fits: ({ prefix_projection }) => prefix_projection },
      ...{ learning_rate: 3e-4, rowsPerStep: 4, warmup_ratio: 0.1 },
    },
    { learning_rate: 1e-2, rowsPerStep: 4, warmup_ratio: 0.1 },
  ],

  bind: (config) => ({
    apply(model, rng) {
      model.freeze();
      model.replace("prefix", new PrefixEncoder(model, config, rng));
    },

    initialize(model, start) {
      const ids = startTokens(config, model, start);
      if (ids !== null) scope(() => (model.prefix as PrefixEncoder).startAs(keysAndValuesOf(model, ids)));
    },

    adapter: {
      library: peft("prefix.embedding.weight"),
      toJson: ({ shape }) => ({
        peft_type: "PREFIX_TUNING",
        num_virtual_tokens: config.num_virtual_tokens,
        num_layers: shape.layers,
        num_transformer_submodules: 1,
        prefix_projection: config.prefix_projection,
        ...(config.prefix_projection && { encoder_hidden_size: projectionWidth(config) }),
      }),
      computed({ prefix }) {
        const encoder = prefix as PrefixEncoder;
        return encoder.hasProjection ? new Map([["prefix.embedding.weight", scope(() => encoder.rows())]]) : null;
      },
    },
  }),

  adapter: {
    library: peft("prefix.embedding.weight"),
    recognises: ({ peft_type }) => peft_type === "PREFIX_TUNING",
    fromJson(json, tensors) {
      const config = checkAdapterConfig(adapterConfigName, json, PeftConfig);
      const { num_virtual_tokens, encoder_hidden_size = null } = config;
      const prefix_projection = tensors.has("prefix.transform.0.weight");
      const settings = settingsFrom(PrefixTuningConfig, { num_virtual_tokens, encoder_hidden_size, prefix_projection });
      checkSize(tensors, { name: "prefix.embedding.weight", axis: 0, key: "num_virtual_tokens", size: num_virtual_tokens });
      const hidden = { name: "prefix.transform.0.weight", key: "encoder_hidden_size", size: projectionWidth(settings) };
      if (prefix_projection) checkSize(tensors, { ...hidden, axis: 0 });
      return settings;
    },
  },
});

/** What PEFT's PREFIX_TUNING holds. Source: PEFT 0.21, tuners/prefix_tuning/config.py. */
const PeftConfig = z.object({
  ...peftVirtualTokens,
  prefix_projection: z.boolean().default(false),
  /** How training began. */
  init_weights: z.unknown().optional(),
});

/** What the base model's attention sees of tokens, as rows of a prefix: (P, L · 2 · G · D). */
function keysAndValuesOf(model: LanguageModel, ids: Int32Array): Tensor {
  const { prefix, device } = model;
  const { layers, kvWidth } = model.shape;
  model.prefix = null;
  const cache = model.newCache(1);
  try {
    scope(() => void model.hidden(continueSequences(cache, [0], [ids])));
    const rows = Tensor.empty(device, [ids.length, layers * 2 * kvWidth]);
    for (let layer = 0; layer < layers; layer++)
      for (const [i, part] of cache.layer(layer).entries())
        scope(() => copyIntoColumns(rows, (2 * layer + i) * kvWidth, firstOf(part, ids.length)));
    return rows;
  } finally {
    cache.dispose();
    model.prefix = prefix;
  }
}
