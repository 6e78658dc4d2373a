import { z } from "zod";
import { scope } from "../../core/tensor.js";
import { adapterConfigName, checkSize, settingsFrom } from "../../io/adapters/adapter-folder.js";
import { checkAdapterConfig, peft } from "../../io/adapters/peft.js";
import { defineTuner } from "../tuner.js";
import { checkStart, peftVirtualTokens, startTokens, virtualTokenSettings } from "../virtual-tokens.js";
import { encoderWidth, PromptEncoder } from "./prompt-encoder.js";

/**
 * P-Tuning: vectors that stand before every sequence like the embeddings of tokens train, and nothing else does; an encoder makes them, which trains
 * with them and is not needed afterwards. Without it this is prompt tuning.
 *
 * Source: Liu et al. 2021, arXiv:2103.10385, §2.3, where the encoder is a bidirectional LSTM and an MLP; Lester et al. 2021, arXiv:2104.08691, for
 * prompt tuning. As in PEFT all virtual tokens come first, and the encoder is an MLP unless set otherwise. PEFT's defaults, but for the number of
 * virtual tokens, which it has none for, and the encoder's width: both are those of its guide. Unlike there, virtual tokens start as those of a text also
 * where an encoder makes them, so that training begins near the base.
 */
export const PTuningConfig = z
  .strictObject({
    ...virtualTokenSettings,
    encoder_reparameterization_type: z
      .enum(["MLP", "LSTM", "NONE"])
      .default("MLP")
      .describe("what makes the virtual tokens while they train; NONE: they train directly (prompt tuning)"),
    encoder_num_layers: z.int().min(1).max(100).default(2).describe("layers of the LSTM encoder; an MLP has three"),
    encoder_dropout: z
      .number()
      .min(0)
      .lt(1)
      .default(0)
      .describe("chance of zeroing a value between layers of the LSTM encoder, in training only"),
  })
  .superRefine((config, context) => checkStart(config, context));
export type PTuningConfig = z.output<typeof PTuningConfig>;

export const pTuning = defineTuner<PTuningConfig>({
  name: "p-tuning",
  summary: "trains vectors that stand before every text like tokens; the model itself stays as it is",
  config: PTuningConfig,
  defaults: [
    {
      where: { words: "without encoder", fits: ({ encoder_reparameterization_type: type }) => type === "NONE" },
      ...{ learning_rate: 3e-2, rowsPerStep: 4, warmup_ratio: 0.1 },
    },
    { learning_rate: 3e-3, rowsPerStep: 4, warmup_ratio: 0.1 },
  ],

  bind: (config) => ({
    apply(model, rng) {
      model.freeze();
      model.replace("prompt", new PromptEncoder(model, config, rng));
    },

    initialize(model, start) {
      const ids = startTokens(config, model, start);
      if (ids === null) return;
      scope(() => (model.prompt as PromptEncoder).startAs(model.tokenVectors(ids)));
    },

    adapter: {
      library: peft("prompt.embedding.weight"),
      toJson({ shape }) {
        const { num_virtual_tokens, encoder_reparameterization_type, encoder_num_layers, encoder_dropout } = config;
        const common = { num_virtual_tokens, token_dim: shape.width, num_layers: shape.layers, num_transformer_submodules: 1 };
        if (encoder_reparameterization_type === "NONE") return { peft_type: "PROMPT_TUNING", ...common };
        return {
          peft_type: "P_TUNING",
          ...common,
          encoder_reparameterization_type,
          encoder_hidden_size: encoderWidth(config),
          encoder_num_layers,
          encoder_dropout,
        };
      },
      computed({ prompt }) {
        const encoder = prompt as PromptEncoder;
        return encoder.hasEncoder ? new Map([["prompt.embedding.weight", scope(() => encoder.forward())]]) : null;
      },
    },
  }),

  adapter: {
    library: peft("prompt.embedding.weight"),
    recognises: ({ peft_type }) => peft_type === "P_TUNING" || peft_type === "PROMPT_TUNING",
    fromJson(json, tensors) {
      const config = checkAdapterConfig(adapterConfigName, json, PeftConfig);
      const { num_virtual_tokens, encoder_hidden_size = null, encoder_num_layers, encoder_dropout } = config;
      const type = tensors.has("prompt.mlp_head.0.weight") ? config.encoder_reparameterization_type : "NONE";
      const settings = settingsFrom(PTuningConfig, {
        num_virtual_tokens,
        encoder_reparameterization_type: type,
        encoder_hidden_size,
        encoder_num_layers,
        encoder_dropout,
      });
      checkSize(tensors, { name: "prompt.embedding.weight", axis: 0, key: "num_virtual_tokens", size: num_virtual_tokens });
      const hidden = { MLP: 1, LSTM: 2, NONE: 0 }[type] * encoderWidth(settings);
      if (hidden > 0) checkSize(tensors, { name: "prompt.mlp_head.0.weight", axis: 0, key: "encoder_hidden_size", size: hidden });
      if (type === "LSTM") {
        const last = { name: `prompt.lstm_head.weight_hh_l${encoder_num_layers - 1}`, key: "encoder_num_layers" };
        checkSize(tensors, { ...last, axis: 1, size: encoderWidth(settings) });
      }
      return settings;
    },
  },
});

/** What PEFT's P_TUNING and PROMPT_TUNING hold. Source: PEFT 0.21, tuners/p_tuning/config.py and tuners/prompt_tuning/config.py. */
const PeftConfig = z.object({
  ...peftVirtualTokens,
  encoder_reparameterization_type: z.enum(["MLP", "LSTM"]).default("MLP"),
  encoder_num_layers: z.int().min(1).default(2),
  encoder_dropout: z.number().min(0).lt(1).default(0),
  /** How training began. */
  prompt_tuning_init: z.unknown().optional(),
  prompt_tuning_init_text: z.unknown().optional(),
  tokenizer_name_or_path: z.unknown().optional(),
});
