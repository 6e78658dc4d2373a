import { z } from "zod";
import { ConfigError } from "../errors.js";
import { needless, refused } from "./foreign-keys.js";
import {
  type RecipeSource,
  readOverrides,
  readSettings,
  refuseSeveralAdapters,
  resolveNames,
  sortOut,
  validate,
} from "./parse.js";
import { keySchemas, type Methods, RecipeKeys, recipeJsonSchema } from "./schema.js";

/** What a chat reads of a recipe, under LLaMA-Factory's names; null where the recipe leaves it to the chat. */
const InferenceKeys = z.strictObject({
  model_name_or_path: RecipeKeys.shape.model_name_or_path,
  adapter_name_or_path: RecipeKeys.shape.adapter_name_or_path,
  template: RecipeKeys.shape.template,
  default_system: z.string().nullable().default(null).describe("the system message of a chat that has none"),
  enable_thinking: z.boolean().nullable().default(null).describe("whether the model may think before it answers"),
  do_sample: z.boolean().nullable().default(null).describe("false: always the likeliest token"),
  temperature: z.number().min(0).nullable().default(null).describe("logits are divided by it; 0: the likeliest token"),
  top_p: z
    .number()
    .gt(0)
    .max(1)
    .nullable()
    .default(null)
    .describe("draw from the likeliest tokens that have this share together"),
  top_k: z.int().min(0).nullable().default(null).describe("draw from this many of the likeliest tokens; 0: from all"),
  repetition_penalty: z.number().gt(0).nullable().default(null).describe("tokens that were used become this much less likely"),
  max_new_tokens: z.int().min(1).nullable().default(null).describe("longest answer, in tokens"),
  seed: z.int().min(0).nullable().default(null).describe("of the tokens that are drawn"),
});

export type InferenceRecipe = Readonly<z.output<typeof InferenceKeys>>;

export interface ParsedInference {
  readonly recipe: InferenceRecipe;
  /** One line each: a setting that was renamed, or left with the reason. */
  readonly notices: readonly string[];
}

/**
 * Reads a recipe as `llamafactory-cli chat` does: LLaMA-Factory's recipes for inference and for merging name the model, its adapter and how
 * answers are drawn. What only training, exports or other engines read is told and left.
 *
 * Throws ConfigError that lists every problem found, each with file and line or the override.
 */
export function parseInference(source: RecipeSource, overrides: readonly string[], methods: Methods): ParsedInference {
  const report = { file: source.file, problems: [] as string[], notices: [] as string[] };
  const known = keySchemas(InferenceKeys);
  const ofTraining = Object.keys(recipeJsonSchema(methods).properties).filter((key) => !Object.hasOwn(known, key));
  const ofExports = Object.keys(refused).filter((key) => key.startsWith("export_"));
  const reasons: Record<string, string> = {
    ...Object.fromEntries(ofTraining.map((key) => [key, "only training reads it"])),
    ...Object.assign({}, ...methods.backends.map((backend) => backend.needless)),
    ...needless,
    ...Object.fromEntries(ofExports.map((key) => [key, "only `attune export` reads it"])),
  };
  const named = resolveNames([readSettings(source), readOverrides(overrides)], known, report);
  const idle = Object.fromEntries(Object.entries(reasons).filter(([key]) => !Object.hasOwn(known, key)));
  const given = sortOut(named, { known, needless: idle, refused }, report);
  const recipe = validate(InferenceKeys, given, report);
  const isOfRun = named.has("output_dir") && named.get("create_new_adapter")?.value === true; // then they are what the run was trained over
  if (!isOfRun)
    refuseSeveralAdapters(given, report.problems, "export the model merged with the first, and name that as the base");
  if (recipe === undefined || report.problems.length > 0) throw new ConfigError(report.problems.join("\n"));
  return { recipe, notices: report.notices };
}

/** Every setting of a recipe by name, with those of the command line in place of the file's, unchecked: for commands that read their own. */
export function settingsOf(source: RecipeSource, overrides: readonly string[] = []): Record<string, unknown> {
  const report = { file: source.file, problems: [] as string[], notices: [] };
  const named = resolveNames([readSettings(source), readOverrides(overrides)], {}, report);
  if (report.problems.length > 0) throw new ConfigError(report.problems.join("\n"));
  return Object.fromEntries([...named].map(([key, { value }]) => [key, value]));
}
