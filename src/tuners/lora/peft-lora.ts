import { z } from "zod";
import type { Tensor } from "../../core/tensor.js";
import { ConfigError, ModelError } from "../../errors.js";
import { adapterConfigName, checkSize, settingsFrom } from "../../io/adapters/adapter-folder.js";
import { checkAdapterConfig, modulesToSaveOf, peft } from "../../io/adapters/peft.js";
import type { LanguageModel } from "../../models/language-model.js";
import { isNamed, leafNames, namesIn } from "../module-names.js";
import type { AdapterReader, AdapterWriter } from "../tuner.js";
import { adaptedEmbeddings, adaptedLinears } from "./adapted.js";
import { LoraConfig } from "./config.js";
import { candidatesOf, matchingPatterns, updateAt } from "./targets.js";

/** LoRA as PEFT keeps it. Source: PEFT 0.21, tuners/lora/config.py and peft_model.py `save_pretrained`. */
export const peftLora: AdapterReader<LoraConfig> = {
  library: peft(),
  recognises: ({ peft_type }) => peft_type === "LORA",

  fromJson(json, tensors) {
    const known = checkAdapterConfig(adapterConfigName, json, PeftLora, meanings);
    const names = [...tensors.keys()];
    const paths = [...new Set(names.flatMap((name) => /^(.*)\.lora_(?:[AB]\.weight|embedding_[AB])$/.exec(name)?.[1] ?? []))];
    if (paths.length === 0)
      throw new ModelError(
        `${adapterConfigName}: LoRA, but none of the ${names.length} tensors beside it is one (MODULE.lora_A.weight): ${names.slice(0, 3).join(", ").slice(0, 300)}.`,
      );
    const isPissa = names.some((name) => name.endsWith(".start.A"));
    const isLoftq = names.some((name) => name.endsWith(".loftqStart.A"));
    const narrower = isPissa || isLoftq ? 1 / 2 : 1;
    const weaker = known.use_rslora ? Math.sqrt(narrower) : narrower;
    const whole = wholeModules(names, modulesToSaveOf(json));
    const config = settingsFrom(LoraConfig, {
      lora_rank: narrower * known.r,
      lora_alpha: weaker * known.lora_alpha,
      lora_dropout: known.lora_dropout,
      lora_target: paths, // what is adapted in fact
      rank_pattern: patternsThatMatch("rank_pattern", scaled(known.rank_pattern, narrower), paths),
      alpha_pattern: patternsThatMatch("alpha_pattern", scaled(known.alpha_pattern, weaker), paths),
      use_rslora: known.use_rslora,
      use_dora: known.use_dora,
      pissa_init: isPissa,
      loftq_init: isLoftq,
      bias: known.bias,
      additional_target: whole.length === 0 ? null : whole,
    });
    for (const path of paths)
      checkSize(tensors, {
        name: tensors.has(`${path}.lora_embedding_A`) ? `${path}.lora_embedding_A` : `${path}.lora_A.weight`,
        axis: 0,
        key: "r and rank_pattern",
        size: updateAt(config, path).rank,
      });
    return config;
  },
};

/** How LoRA of these settings is written. */
export function writerOf(config: LoraConfig): AdapterWriter {
  return {
    library: peft(),

    toJson(model) {
      const alpha = config.lora_alpha ?? 2 * config.lora_rank;
      // What was learnt since PiSSA's or LoftQ's start leaves as an ordinary LoRA of twice the rank with the same scaling.
      const wider = config.pissa_init || config.loftq_init ? 2 : 1;
      const stronger = config.use_rslora ? Math.sqrt(wider) : wider;
      return {
        peft_type: "LORA",
        r: wider * config.lora_rank,
        lora_alpha: stronger * alpha,
        lora_dropout: config.lora_dropout,
        target_modules: targetNames(model),
        rank_pattern: scaled(config.rank_pattern, wider),
        alpha_pattern: scaled(config.alpha_pattern, stronger),
        modules_to_save: config.additional_target === null ? null : wholeNames(model, namesIn(config.additional_target)),
        bias: config.bias,
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
        fan_in_fan_out: false,
        init_lora_weights: true,
      };
    },

    computed(model) {
      const tensors = new Map<string, Tensor>();
      for (const [path, layer] of adaptedLinears(model)) {
        const difference = layer.difference();
        if (difference !== null) tensors.set(`${path}.lora_A.weight`, difference.a).set(`${path}.lora_B.weight`, difference.b);
      }
      if (tensors.size === 0) return null;
      for (const [name, { value }] of model.trainableParameters()) if (!tensors.has(name)) tensors.set(name, value.alias());
      return tensors;
    },
  };
}

/** What other keys would make of an adapter. Source: PEFT 0.21, tuners/lora/config.py. */
const meanings: Readonly<Record<string, string>> = {
  alora_invocation_tokens: "works only from certain tokens on",
  arrow_config: "is chosen for each token among several adapters",
  ensure_weight_tying: "keeps the output projection tied to what it learnt of the embedding",
  kasa_config: "takes singular values out of the base",
  layer_replication: "belongs to a model in which layers of the base are repeated",
  lora_bias: "adds a bias after lora_B",
  monteclora_config: "draws its weights at random",
  target_parameters: "changes parameters that are no layers, as those of experts",
  trainable_token_indices: "has vectors of its own for single tokens",
  use_bdlora: "has block-diagonal factors",
  use_qalora: "averages its inputs in groups",
};

/** How training began, for starts that leave the base model as it is. */
const starts = ["gaussian", "eva", "orthogonal", "mica"] as const;

/** A pattern for names of modules, which is matched under a time limit. */
const Pattern = z.string().max(1000);

const Alpha = z.number().positive().max(1e9);

/**
 * The keys of adapter_config.json that attune understands, with PEFT's defaults. `init_lora_weights` lists only starts that leave the base
 * model as it is: with the others (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) the adapter does not fit the unchanged base.
 */
const PeftLora = z.object({
  peft_type: z.literal("LORA"),
  r: z.int().min(1),
  lora_alpha: Alpha,
  lora_dropout: z.number().min(0).lt(1).default(0),
  rank_pattern: z
    .record(Pattern, z.int().min(1))
    .nullish()
    .transform((patterns) => patterns ?? {}),
  alpha_pattern: z
    .record(Pattern, z.number().positive())
    .nullish()
    .transform((patterns) => patterns ?? {}),
  use_rslora: z.boolean().default(false),
  use_dora: z.boolean().default(false),
  bias: z.enum(["none", "all", "lora_only"]).default("none"),
  init_lora_weights: z
    .union([z.boolean(), z.enum(starts)], {
      error: ({ input }) =>
        `${JSON.stringify(input)?.slice(0, 100)} is none of true, false, ${starts.join(", ")}: other starts change the base, so that the adapter ` +
        "does not fit the base as it is. PEFT's save_pretrained with path_initial_model_for_weight_conversion makes an ordinary LoRA of it",
    })
    .default(true),
  eva_config: z.unknown().optional(),
  corda_config: z.unknown().optional(),
  loftq_config: z.unknown().optional(),
  lora_ga_config: z.unknown().optional(),
  /** How gradients are made. */
  velora_config: z.unknown().optional(),
  /** Which modules are adapted is better told from the tensors. */
  target_modules: z.unknown().optional(),
  exclude_modules: z.unknown().optional(),
  layers_to_transform: z.unknown().optional(),
  layers_pattern: z.unknown().optional(),
  /** How the base keeps its weights, which a change to it need not know. */
  fan_in_fan_out: z.boolean().nullish(),
});

/** `matchingPatterns` of a file. */
function patternsThatMatch(key: string, patterns: Readonly<Record<string, number>>, paths: readonly string[]) {
  try {
    return matchingPatterns(key, patterns, paths);
  } catch (error) {
    throw error instanceof ConfigError ? new ModelError(`adapter_config.json: ${error.message}`, { cause: error }) : error;
  }
}

function scaled(patterns: Readonly<Record<string, number>>, factor: number): Record<string, number> {
  return Object.fromEntries(Object.entries(patterns).map(([pattern, value]) => [pattern, factor * value]));
}

/** Names of modules that train whole, as PEFT understands them: whole paths where it would take more modules by a name, not asking for a dot. */
function wholeNames(model: LanguageModel, names: readonly string[]): string[] {
  const paths = [...model.namedModules()].map(([path]) => path);
  return names.flatMap((name) => {
    const meant = paths.filter((path) => isNamed(path, name));
    return paths.some((path) => path.endsWith(name) && !meant.includes(path)) ? meant : name;
  });
}

/** The modules that an adapter's tensors hold whole. PEFT takes every module whose name ends with one of `wanted`, without asking for a dot. */
function wholeModules(tensors: readonly string[], wanted: readonly string[]): string[] {
  const modules = tensors.filter((name) => !name.includes(".lora_")).map((name) => name.split(".").slice(0, -1).join("."));
  return [...new Set(modules)].filter((path) => wanted.some((name) => path.endsWith(name)));
}

/** Short names where every layer of that name is adapted, else whole paths. */
function targetNames(model: LanguageModel): string[] {
  const plain = candidatesOf(model).map(([path]) => path.replace(/\.base_layer$/, ""));
  const adapted = [...adaptedLinears(model), ...adaptedEmbeddings(model)].map(([path]) => path);
  const leaves = leafNames(adapted);
  const isWhole = leaves.every((leaf) => plain.every((path) => !isNamed(path, leaf) || adapted.includes(path)));
  return isWhole ? leaves : adapted;
}
