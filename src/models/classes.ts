import { join } from "node:path";
import { ConfigError, ModelError } from "../errors.js";
import { namesIn } from "../io/disk.js";
import { readJsonObject } from "../io/hf-folder.js";
import type { TextFile } from "../text/tokenizer/tokenizer.js";
import { shown } from "./config-keys.js";

type Config = Readonly<Record<string, unknown>>;

const maxClasses = 2 ** 20;
const suffix = "ForSequenceClassification";

/**
 * The names of a classifier's classes in the order of its outputs, as config.json has them; null for any other model. As in transformers, a
 * classifier that does not say has two, LABEL_0 and LABEL_1. Throws ModelError.
 */
export function classesOf({ architectures, id2label, num_labels }: Config): readonly string[] | null {
  const architecture: unknown = Array.isArray(architectures) ? architectures[0] : undefined;
  if (typeof architecture !== "string" || !architecture.endsWith(suffix)) return null;
  if (id2label === undefined || id2label === null) {
    const count = num_labels ?? 2;
    if (typeof count !== "number" || !Number.isInteger(count) || count < 1 || count > maxClasses)
      throw new ModelError(`config.json: num_labels: expected a whole number from 1 to ${maxClasses}, got ${shown(count)}`);
    return Array.from({ length: count }, (_, i) => `LABEL_${i}`);
  }
  const names = typeof id2label === "object" ? Object.keys(id2label).slice(0, maxClasses) : [];
  const classes = names.map((_, i) => (id2label as Record<string, unknown>)[i]);
  if (classes.length === 0 || !classes.every((name): name is string => typeof name === "string"))
    throw new ModelError(`config.json: id2label: expected names for 0, 1, 2 …, got ${shown(id2label)}`);
  return classes;
}

/** How outputs become scores: each text has one class, each class is there or not, or an output is a number as it is. */
export type Scoring = "softmax" | "sigmoid" | "none";

/**
 * What a classifier of so many outputs says with them. Source: transformers 5.24, pipelines/text_classification.py `postprocess`. Throws ModelError
 * for a problem_type that transformers refuses.
 */
export function scoringOf({ problem_type: problem }: Config, outputs: number): Scoring {
  switch (problem ?? null) {
    case null:
      return outputs === 1 ? "sigmoid" : "softmax";
    case "regression":
      return "none";
    case "multi_label_classification":
      return "sigmoid";
    case "single_label_classification":
      if (outputs > 1) return "softmax";
      throw new ModelError("config.json: problem_type: single_label_classification needs several classes, and there is one");
    default:
      throw new ModelError(
        `config.json: problem_type: expected regression, single_label_classification or multi_label_classification, got ${JSON.stringify(problem).slice(0, 100)}`,
      );
  }
}

const fileName = "labels.json";

/**
 * What a classifier's config.json says of its classes, for a folder that has none, an adapter's: PEFT saves it nowhere. Without a problem_type each text has
 * one class.
 */
export function classesFile({ id2label, problem_type: problem }: Config): TextFile {
  const said = problem === undefined || problem === singleLabel ? { id2label } : { id2label, problem_type: problem };
  return { name: fileName, contents: `${JSON.stringify(said, null, 2)}\n` };
}

/** What `classesFile` wrote into a folder, as `classesOf` and `scoringOf` read it; null if it has none. Throws ModelError. */
export async function readClasses(folder: string): Promise<Config | null> {
  if (!(await namesIn(folder)).includes(fileName)) return null;
  const { id2label, problem_type } = await readJsonObject(join(folder, fileName));
  return { architectures: [suffix], id2label, ...(problem_type !== undefined && { problem_type }) };
}

const singleLabel = "single_label_classification";

/** config.json of a classifier of these classes on the base that `config` describes: transformers loads it as AutoModelForSequenceClassification. */
export function classifierConfig(config: Config, classes: readonly string[], problem: string = singleLabel): Config {
  const [architecture] = Array.isArray(config.architectures) ? (config.architectures as unknown[]) : [];
  const name = typeof architecture === "string" ? architecture : pascalCase(String(config.model_type));
  const { num_labels: _, ...kept } = config;
  return {
    ...kept,
    architectures: [`${name.replace(/(?:For\w+|LMHeadModel|Model)$/, "")}${suffix}`],
    id2label: Object.fromEntries(classes.entries()),
    label2id: Object.fromEntries(classes.map((label, i) => [label, i])),
    problem_type: problem,
  };
}

/**
 * config.json of a reward model on the base that `config` describes: a regression with one output, as TRL's RewardTrainer makes it. One that has an output
 * already keeps its name. Throws ConfigError for a base with several outputs.
 */
export function rewardConfig(config: Config): Config {
  const own = classesOf(config);
  if (own !== null && own.length !== 1)
    throw new ConfigError(
      `the base is a classifier with ${own.length} outputs (${own.slice(0, 3).join(", ")}), and a reward model has one: start from a base without a head`,
    );
  return classifierConfig(config, own ?? ["reward"], regression);
}

const regression = "regression";

/** Whether config.json describes a reward model: one number for a text, as it is. */
export function isRewardConfig(config: Config): boolean {
  return config.problem_type === regression && classesOf(config)?.length === 1;
}

function pascalCase(name: string): string {
  return name.replace(/(?:^|_)(\w)/g, (_, letter: string) => letter.toUpperCase());
}
