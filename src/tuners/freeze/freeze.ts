import { z } from "zod";
import { ConfigError } from "../../errors.js";
import type { LanguageModel } from "../../models/language-model.js";
import { Parameter } from "../../nn/module.js";
import { nameOrNames, namesIn } from "../module-names.js";
import { trainWhole } from "../train-whole.js";
import { defineTuner } from "../tuner.js";

export const FreezeConfig = z.strictObject({
  freeze_trainable_layers: z
    .int()
    .refine((count) => count !== 0)
    .default(2)
    .describe("how many of the last layers train; negative: of the first"),
  freeze_trainable_modules: nameOrNames
    .default("all")
    .describe("which parts of these layers train, by name (self_attn, mlp); all: every one"),
  freeze_extra_modules: nameOrNames.nullable().default(null).describe("what else trains, by name: lm_head, embed_tokens, norm"),
});
export type FreezeConfig = z.output<typeof FreezeConfig>;

/**
 * Freeze tuning: some layers train whole, the rest of the model stays. The whole model is saved.
 * Source: LLaMA-Factory, model/adapter.py `_setup_freeze_tuning` and hparams/finetuning_args.py at ff6d4d12, whose names and defaults these are.
 */
export const freeze = defineTuner<FreezeConfig>({
  name: "freeze",
  summary: "trains a few whole layers; the rest of the model stays as it is",
  config: FreezeConfig,
  defaults: [{ learning_rate: 3e-4, rowsPerStep: 4, warmup_ratio: 0.1 }],

  bind: (config) => ({
    changesBase: true,
    apply(model) {
      model.freeze();
      const places = [...placesOf(model)];
      const layers = new Set(places.flatMap(({ layer }) => layer ?? [])).size;
      const count = config.freeze_trainable_layers;
      if (Math.abs(count) > layers)
        throw new ConfigError(`freeze_trainable_layers: the model has ${layers} layers, so ${count} of them cannot train`);
      const isTrained = (layer: number) => (count > 0 ? layer >= layers - count : layer < -count);
      const inside = places.filter(({ layer }) => layer !== null && isTrained(layer));
      train("freeze_trainable_modules", config.freeze_trainable_modules, inside);
      if (config.freeze_extra_modules !== null)
        train(
          "freeze_extra_modules",
          config.freeze_extra_modules,
          places.filter(({ layer }) => layer === null),
        );
    },
  }),
});

/** A weight: the number of its layer, null outside of layers, and the names on the way to it from there. */
interface Place {
  readonly layer: number | null;
  readonly names: readonly string[];
  readonly parameter: Parameter;
}

/** A weight that two modules share has a place in both. */
function* placesOf(model: LanguageModel): Generator<Place> {
  for (const [path, module] of model.namedModules()) {
    const [, layer, inLayer] = /^(?:.*?\.)?(\d+)(?:\.(.*))?$/.exec(path) ?? [];
    const names = (layer === undefined ? path : (inLayer ?? "")).split(".");
    for (const [, child] of module.namedChildren())
      if (child instanceof Parameter) yield { layer: layer === undefined ? null : Number(layer), names, parameter: child };
  }
}

/** Lets the weights train that are in a module of one of these names. */
function train(key: string, setting: string | readonly string[], places: readonly Place[]): void {
  for (const name of namesIn(setting)) {
    const chosen = places.filter(({ names }) => name === "all" || names.includes(name));
    if (chosen.length === 0) {
      const there = [...new Set(places.flatMap(({ names }) => names))].sort().join(", ");
      throw new ConfigError(`${key}: nothing there is named "${name}". There are: ${there}, or all`);
    }
    for (const { parameter } of chosen) trainWhole(parameter);
  }
}
