import { ConfigError } from "../../errors.js";
import type { LanguageModel } from "../../models/language-model.js";
import { Linear } from "../../nn/linear.js";
import { isBelow, isNamed, leafNames, namesIn } from "../module-names.js";
import type { LoraConfig } from "./config.js";

/**
 * Which layers the settings mean. Source: PEFT 0.21, tuners_utils.py `check_target_module_exists` and other.py `get_pattern_key`; where PEFT
 * passes over a name in a list that nothing has, this is an error here.
 */
export function targetsOf(model: LanguageModel, config: LoraConfig): [path: string, layer: Linear][] {
  const linears = linearsOf(model);
  const whole = [...namesIn(config.additional_target ?? []), ...model.headModules]; // a new pooler lies deeper than a head
  const isExcluded = config.exclude_modules === null ? () => false : selector("exclude_modules", config.exclude_modules, linears);
  const areAll = config.lora_target === "all" || config.lora_target === "all-linear"; // PEFT's word
  const isWanted = areAll ? () => true : selector("lora_target", config.lora_target, linears);
  const isInLayer = layerFilter(config);
  const chosen = linears.filter(
    ([path]) => isWanted(path) && !isExcluded(path) && isInLayer(path) && !whole.some((name) => isBelow(path, name)),
  );
  if (chosen.length === 0)
    throw new ConfigError("lora_target: no Linear layer is left to adapt, with what the other settings exclude");
  return chosen;
}

/** Every Linear but the heads, which hang at the model itself. */
export function linearsOf(model: LanguageModel): [path: string, layer: Linear][] {
  const linears: [path: string, layer: Linear][] = [];
  for (const [path, module] of model.namedModules())
    if (module instanceof Linear && path.includes(".")) linears.push([path, module]);
  return linears;
}

/** Names, of which each must mean something; or one regular expression for whole paths. */
function selector(
  key: string,
  setting: string | readonly string[],
  linears: readonly [path: string, layer: Linear][],
): (path: string) => boolean {
  const names = namesIn(setting);
  const arePlain = names.every((name) => /^[\w.-]+$/.test(name));
  if (typeof setting === "string" && !arePlain) {
    const pattern = regularExpression(key, `^(?:${setting})$`);
    return (path) => pattern.test(path);
  }
  for (const name of names)
    if (!linears.some(([path]) => isNamed(path, name))) {
      const there = leafNames(linears.map(([path]) => path)).join(", ");
      throw new ConfigError(`${key}: no Linear layer is named "${name}". There are: ${there}, or all`);
    }
  return (path) => names.some((name) => isNamed(path, name));
}

function layerFilter({ layers_to_transform: wanted, layers_pattern }: LoraConfig): (path: string) => boolean {
  if (wanted === null) return () => true;
  const numbers = typeof wanted === "number" ? [wanted] : wanted;
  const lists = layers_pattern === null ? ["[^.]+"] : namesIn(layers_pattern);
  const patterns = lists.map((list) => regularExpression("layers_pattern", `(?:^|\\.)(?:${list})\\.(\\d+)\\.`));
  return (path) => {
    const number = patterns.map((pattern) => pattern.exec(path)?.[1]).find((found) => found !== undefined);
    return number !== undefined && numbers.includes(Number(number));
  };
}

/** Rank of the update of a layer, and what the update is multiplied by. */
export function updateAt(config: LoraConfig, path: string): { rank: number; scaling: number } {
  const rank = patternValue("rank_pattern", config.rank_pattern, path) ?? config.lora_rank;
  const alpha = patternValue("alpha_pattern", config.alpha_pattern, path) ?? config.lora_alpha ?? 2 * config.lora_rank;
  return { rank, scaling: config.use_rslora ? alpha / Math.sqrt(rank) : alpha / rank };
}

/** What a pattern says of a path: that of the first key that, as a regular expression, is its end after a dot. */
function patternValue<T>(key: string, patterns: Readonly<Record<string, T>>, path: string): T | undefined {
  for (const [pattern, value] of Object.entries(patterns))
    if (regularExpression(key, `^(?:.*\\.)?(?:${pattern})$`).test(path)) return value;
  return undefined;
}

function regularExpression(key: string, source: string): RegExp {
  try {
    return new RegExp(source);
  } catch (error) {
    throw new ConfigError(`${key}: ${(error as Error).message}`, { cause: error });
  }
}
