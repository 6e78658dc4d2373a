import type { Rng } from "../../core/rng.js";
import type { Tensor } from "../../core/tensor.js";
import type { DType } from "../../engine/dtype.js";
import { ConfigError } from "../../errors.js";
import type { LanguageModel } from "../../models/language-model.js";
import { Embedding } from "../../nn/embedding.js";
import { Linear } from "../../nn/linear.js";
import { Parameter } from "../../nn/module.js";
import { isBelow, isNamed, namesIn } from "../module-names.js";
import { quantizedBase, rounded } from "../quantized-base.js";
import { trainCopies, trainModules } from "../train-whole.js";
import { defineTuner } from "../tuner.js";
import { adaptedEmbeddings, adaptedLinears } from "./adapted.js";
import { LoraConfig } from "./config.js";
import { DoraLinear } from "./dora-linear.js";
import { copied, type Factors, FrozenFactors, freshFactors } from "./factors.js";
import { loftq } from "./loftq.js";
import { LoraEmbedding } from "./lora-embedding.js";
import { type AdaptedLinear, LoraLinear } from "./lora-linear.js";
import { peftLora, writerOf } from "./peft-lora.js";
import { PissaLinear } from "./pissa-linear.js";
import { type Target, targetsOf, updateAt } from "./targets.js";

/**
 * LoRA: keep W frozen and train a rank-r change to it.   y = x Wᵀ + s · dropout(x) Aᵀ Bᵀ,   s = α/r
 *
 * Source: Hu et al. 2021, arXiv:2106.09685, eq. 3 and §4.1. The paper draws A from a Gaussian; like microsoft/LoRA and PEFT we use
 * Kaiming-uniform(√5). Variants: rsLoRA, s = α/√r (Kalajdzievski 2023, arXiv:2312.03732); LoRA+, B learns faster (Hayou et al. 2024,
 * arXiv:2402.12354); DoRA (dora-linear.ts); PiSSA (pissa-linear.ts). Names and saved keys are PEFT's: lora_A, lora_B.
 */
export const lora = defineTuner<LoraConfig>({
  name: "lora",
  summary: "trains a small low-rank change to each Linear layer; the base model stays as it is",
  config: LoraConfig,

  defaults: [
    {
      where: {
        words: "with `loraplus_lr_ratio` or `pissa_init`",
        fits: ({ loraplus_lr_ratio, pissa_init }) => loraplus_lr_ratio !== null || pissa_init,
      },
      ...{ learning_rate: 2e-4, rowsPerStep: 4, warmup_ratio: 0.1 },
    },
    { learning_rate: 1e-3, rowsPerStep: 4, warmup_ratio: 0.1 },
  ],

  ofRun: ["loraplus_lr_ratio", "quantization_bit", "quantization_type", "double_quantization", "loftq_iter"],

  bind(config) {
    checkCombination(config);
    /** What LoftQ found for layers while their weights were read, until `apply` takes it over. */
    const starts = new Map<Target, Factors>();
    return {
      storing(model, notify) {
        const whole = namesIn(config.additional_target ?? []);
        const isWhole = (path: string) => whole.some((name) => isBelow(path, name));
        if (!config.loftq_init) return quantizedBase(model, config, notify, { isWhole });
        const targets = new Map(targetsOf(model, config).map(([path, layer]) => [`${path}.weight`, { path, layer }]));
        const quantize = (w: Tensor, type: DType, name: string) => {
          const target = targets.get(name);
          if (target === undefined) return rounded(w, type);
          const { quantized, start } = loftq(w, type, { ...updateAt(config, target.path), rounds: config.loftq_iter });
          starts.set(target.layer, start);
          return quantized;
        };
        return quantizedBase(model, config, notify, { isWhole, quantize });
      },

      mergesIntoStored: config.quantization_bit !== null && !config.loftq_init,

      apply(model, rng) {
        model.freeze();
        const targets = targetsOf(model, config);
        checkTargets(targets, config);
        for (const [path, base] of targets) {
          const start = starts.get(base);
          starts.delete(base);
          model.replace(path, adapted(base, path, config, start, rng));
        }
        if (config.bias === "all") trainCopies(model, (path) => isNamed(path, "bias"));
        if (config.bias === "lora_only") trainCopies(model, (path) => isNamed(path, "base_layer.bias"));
        trainWholeModules(model, namesIn(config.additional_target ?? []));
        if (config.loraplus_lr_ratio !== null) speedUp(model, config.loraplus_lr_ratio);
      },

      merge(model) {
        for (const [path, layer] of [...adaptedLinears(model), ...adaptedEmbeddings(model)]) {
          model.replace(path, layer instanceof LoraEmbedding ? layer.merged() : mergedLinear(layer));
          const inUse = new Set([...model.namedParameters()].map(([, parameter]) => parameter)); // as a weight that is tied to it
          for (const [, parameter] of layer.namedParameters())
            for (const left of [parameter, parameter.original]) if (left !== null && !inUse.has(left)) left.dispose();
        }
      },

      ...(!config.use_dora && { scaleAt: (path) => updateAt(config, path).scaling }),

      adapter: writerOf(config),
    };
  },

  adapter: peftLora,
});

function checkCombination({ use_dora, pissa_init, loftq_init, quantization_bit }: LoraConfig): void {
  const starts = Object.entries({ use_dora, pissa_init, loftq_init }).flatMap(([name, isWanted]) => (isWanted ? [name] : []));
  if (starts.length > 1) throw new ConfigError(`${starts.join(" and ")} cannot be combined: choose one`);
  if (loftq_init && quantization_bit === null)
    throw new ConfigError("loftq_init makes up for what quantizing loses: set quantization_bit: 4, or leave it out");
}

/** Some variants know Linears only, and DoRA none whose logits are never whole. Throws ConfigError. */
function checkTargets(targets: readonly [path: string, layer: Target][], config: LoraConfig): void {
  const { use_dora, pissa_init, loftq_init, loraplus_lr_ratio } = config;
  const table = targets.find(([, layer]) => layer instanceof Embedding)?.[0];
  const head = targets.find(([path]) => !path.includes("."))?.[0];
  const forbidden = {
    use_dora: use_dora ? (table ?? head) : undefined,
    pissa_init: pissa_init ? table : undefined,
    loftq_init: loftq_init ? table : undefined,
    loraplus_lr_ratio: loraplus_lr_ratio === null ? undefined : table,
  };
  for (const [key, path] of Object.entries(forbidden))
    if (path !== undefined)
      throw new ConfigError(
        `${key} does not work for ${path}: leave it out of lora_target, name it in additional_target, or unset ${key}`,
      );
}

/** The layer that takes the place of `base`; `start` is what LoftQ found for it. */
function adapted(
  base: Target,
  path: string,
  config: LoraConfig,
  start: Factors | undefined,
  rng: Rng,
): AdaptedLinear | LoraEmbedding {
  const { rank, scaling } = updateAt(config, path);
  if (base instanceof Embedding) return new LoraEmbedding(base, rank, scaling, rng);
  const options = { scaling, dropout: config.lora_dropout };
  if (config.pissa_init) return new PissaLinear(base, rank, config.pissa_iter, options, rng);
  if (config.loftq_init) {
    const factors = start ?? freshFactors(base, rank, rng); // a weight that is not quantized has lost nothing
    return new LoraLinear(base, copied(factors), options, new FrozenFactors(factors));
  }
  const factors = freshFactors(base, rank, rng);
  return config.use_dora ? new DoraLinear(base, factors, options) : new LoraLinear(base, factors, options);
}

function trainWholeModules(model: LanguageModel, names: readonly string[]): void {
  for (const name of names)
    if (![...model.namedModules()].some(([path]) => isNamed(path, name))) {
      const there = [...model.namedModules()].filter(([path]) => path !== "" && !path.includes(".")).map(([path]) => path);
      throw new ConfigError(
        `additional_target: no module is named "${name}". At the top of the model there are: ${there.join(", ")}`,
      );
    }
  trainModules(model, names);
}

/** LoRA+: B, and the vectors that train, learn `ratio` times as fast; as LLaMA-Factory and PEFT group them. */
function speedUp(model: LanguageModel, ratio: number): void {
  for (const [name, parameter] of model.trainableParameters())
    if (name.endsWith(".lora_B.weight") || parameter.shape.length === 1) parameter.learningRateScale = ratio;
}

/** An ordinary Linear that does what an adapted layer does. Its weight is its own, its bias the layer's. */
function mergedLinear(layer: AdaptedLinear): Linear {
  const { base_layer: base } = layer;
  const weight = layer.mergedWeight();
  const merged = new Linear(base.inFeatures, base.outFeatures, { weight: new Parameter(weight.shape, weight) });
  merged.weight.isStoredTransposed = base.weight.isStoredTransposed;
  if (base.bias !== null) merged.replace("bias", base.bias);
  return merged;
}

/**
 * Puts merged weights in the place of adapted layers, which then cost nothing while the model is used. Returns what takes them out again: the model is
 * then, bit by bit, what it was.
 */
export function mergeForUse(model: LanguageModel): () => void {
  const places = adaptedLinears(model).map(([path, layer]) => ({ path, layer, merged: mergedLinear(layer) }));
  for (const { path, merged } of places) model.replace(path, merged);
  return () => {
    for (const { path, layer, merged } of places) {
      model.replace(path, layer);
      merged.weight.dispose();
    }
  };
}
