import { ConfigError } from "../../errors.js";
import { CausalLM } from "../../models/causal-lm.js";
import type { LanguageModel } from "../../models/language-model.js";
import { Embedding } from "../../nn/embedding.js";
import { Linear } from "../../nn/linear.js";
import { translateRegex } from "../../text/regex.js";
import { withTimeLimit } from "../../text/work-limit.js";
import { isBelow, isNamed, leafNames, namesIn } from "../module-names.js";
import type { LoraConfig } from "./config.js";

/** What LoRA can change: a Linear layer or a table of vectors. */
export type Target = Linear | Embedding;

/**
 * Which layers the settings mean: `all` are the Linears of the layers: not the output projection, nor the head of a classifier. The
 * output projection and tables of vectors are adapted where the settings name them.
 * Source: PEFT 0.21, tuners_utils.py `check_target_module_exists` and other.py `get_pattern_key`; where PEFT passes over a name in a list that
 * nothing has, this is an error here.
 */
export function targetsOf(model: LanguageModel, config: LoraConfig): [path: string, layer: Target][] {
  return withinTime(() => chooseTargets(model, config));
}

const matchingLimitMs = 1000;

/** Matches names of layers. Throws ConfigError if that takes too long, as some regular expressions would forever. */
function withinTime<T>(match: () => T): T {
  const keys = "lora_target, exclude_modules, layers_pattern, rank_pattern or alpha_pattern";
  return withTimeLimit(
    matchingLimitMs,
    match,
    () =>
      new ConfigError(
        `${keys}: matching a regular expression with the names of layers took more than ${matchingLimitMs / 1000} s: make it simpler`,
      ),
  );
}

function chooseTargets(model: LanguageModel, config: LoraConfig): [path: string, layer: Target][] {
  const candidates = candidatesOf(model);
  const whole = [...namesIn(config.additional_target ?? []), ...model.headModules]; // a new pooler lies deeper than a head
  const isExcluded =
    config.exclude_modules === null ? () => false : selector("exclude_modules", config.exclude_modules, candidates);
  const areAll = config.lora_target === "all" || config.lora_target === "all-linear"; // PEFT's word
  const isWanted = areAll ? isOfAll : selector("lora_target", config.lora_target, candidates);
  const isInLayer = layerFilter(
    config,
    candidates.map(([path]) => path),
  );
  const chosen = candidates.filter(
    ([path, layer]) =>
      isWanted(path, layer) && !isExcluded(path) && isInLayer(path) && !whole.some((name) => isBelow(path, name)),
  );
  if (chosen.length === 0)
    throw new ConfigError("lora_target: no Linear layer is left to adapt, with what the other settings exclude");
  const paths = chosen.map(([path]) => path);
  checkPatterns("rank_pattern", config.rank_pattern, paths);
  checkPatterns("alpha_pattern", config.alpha_pattern, paths);
  return chosen;
}

const isOfAll = (path: string, layer: Target) => layer instanceof Linear && path.includes(".");

/** Throws ConfigError for a key that is the name of no adapted layer, over which PEFT passes without a word. */
function checkPatterns(key: string, patterns: Readonly<Record<string, number>>, paths: readonly string[]): void {
  for (const pattern of Object.keys(patterns))
    if (!paths.some((path) => isMatch(key, pattern, path)))
      throw new ConfigError(
        `${key}: ${JSON.stringify(pattern)} is the name of no adapted layer. There are: ${leafNames(paths).join(", ")}; ` +
          `a whole path is like ${paths[0]}`,
      );
}

/** Every Linear and every table of vectors. Of the Linears outside the layers only the output projection, where the model uses it. */
export function candidatesOf(model: LanguageModel): [path: string, layer: Target][] {
  const output = model instanceof CausalLM && !model.isClassifier ? model.lm_head : null;
  const candidates: [path: string, layer: Target][] = [];
  for (const [path, module] of model.namedModules())
    if (module instanceof Embedding || (module instanceof Linear && (path.includes(".") || module === output)))
      candidates.push([path, module]);
  return candidates;
}

/** Names, of which each must mean something; or one regular expression for whole paths. */
function selector(
  key: string,
  setting: string | readonly string[],
  candidates: readonly [path: string, layer: Target][],
): (path: string) => boolean {
  const names = namesIn(setting);
  const arePlain = names.every((name) => /^[\w.-]+$/.test(name));
  if (typeof setting === "string" && !arePlain) {
    const pattern = regularExpression(key, setting, (source) => `^(?:${source})$`);
    if (!candidates.some(([path]) => pattern.test(path)))
      throw new ConfigError(`${key}: the regular expression ${JSON.stringify(setting)} matches the path of no Linear layer`);
    return (path) => pattern.test(path);
  }
  for (const name of names)
    if (!candidates.some(([path]) => isNamed(path, name))) {
      const there = leafNames(candidates.map(([path]) => path)).join(", ");
      throw new ConfigError(`${key}: no Linear layer is named "${name}". There are: ${there}, or all`);
    }
  return (path) => names.some((name) => isNamed(path, name));
}

function layerFilter(
  { layers_to_transform: wanted, layers_pattern }: LoraConfig,
  paths: readonly string[],
): (path: string) => boolean {
  if (wanted === null && layers_pattern !== null)
    throw new ConfigError(
      "layers_pattern names the list of modules that layers_to_transform counts in: set layers_to_transform as well, or leave this out",
    );
  if (wanted === null) return () => true;
  const lists = layers_pattern === null ? ["[^.]+"] : namesIn(layers_pattern);
  const patterns = lists.map((list) => {
    const pattern = regularExpression("layers_pattern", list, (source) => `(?:^|\\.)(?:${source})\\.(?<layer>\\d+)\\.`);
    if (!paths.some((path) => pattern.test(path)))
      throw new ConfigError(`layers_pattern: no Linear layer is in a list of layers that is called ${JSON.stringify(list)}`);
    return pattern;
  });
  const layerOf = (path: string): number | undefined => {
    const found = patterns.map((pattern) => pattern.exec(path)?.groups?.layer).find((number) => number !== undefined);
    return found === undefined ? undefined : Number(found);
  };
  const there = new Set(paths.map(layerOf));
  const numbers = typeof wanted === "number" ? [wanted] : wanted;
  for (const number of numbers)
    if (!there.has(number)) throw new ConfigError(`layers_to_transform: no Linear layer is in a layer of the number ${number}`);
  return (path) => numbers.includes(layerOf(path)!);
}

/** Rank of the update of a layer, and what the update is multiplied by. */
export function updateAt(config: LoraConfig, path: string): { rank: number; scaling: number } {
  const rank = patternValue("rank_pattern", config.rank_pattern, path) ?? config.lora_rank;
  const alpha = patternValue("alpha_pattern", config.alpha_pattern, path) ?? config.lora_alpha ?? 2 * config.lora_rank;
  return { rank, scaling: config.use_rslora ? alpha / Math.sqrt(rank) : alpha / rank };
}

/** What the patterns say of a path: the first key that matches decides. */
function patternValue<T>(key: string, patterns: Readonly<Record<string, T>>, path: string): T | undefined {
  const entries = Object.entries(patterns);
  if (entries.length === 0) return undefined; // a time limit costs more than most layers' updates
  return withinTime(() => entries.find(([pattern]) => isMatch(key, pattern, path))?.[1]);
}

/** The patterns that are the name of one of these layers: over the others PEFT passes when it loads an adapter. */
export function matchingPatterns<T>(
  key: string,
  patterns: Readonly<Record<string, T>>,
  paths: readonly string[],
): Record<string, T> {
  return withinTime(() => {
    const matching = Object.entries(patterns).filter(([pattern]) => paths.some((path) => isMatch(key, pattern, path)));
    return Object.fromEntries(matching);
  });
}

/** Whether a key of a pattern, as a regular expression, is the whole path or its end after a dot. */
function isMatch(key: string, pattern: string, path: string): boolean {
  if (/^\(\?[a-zA-Z]+\)/.test(pattern))
    throw new ConfigError(
      `${key}: ${JSON.stringify(pattern)}: flags for the whole pattern do not work here, in PEFT either: write (?i:…)`,
    );
  return regularExpression(key, pattern, (source) => `^(?:.*\\.)?(?:${source})$`).test(path);
}

/** A pattern in the syntax of Python's `re`, which PEFT asks; `within` puts it where it belongs. */
function regularExpression(key: string, pattern: string, within: (source: string) => string): RegExp {
  try {
    return new RegExp(within(translateRegex(pattern, "python").source), "v");
  } catch (error) {
    throw new ConfigError(`${key}: ${(error as Error).message}`, { cause: error });
  }
}
