import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { ConfigError } from "../errors.js";
import type { RecipeSource } from "../recipe/parse.js";
import { required } from "./options.js";
import type { Parts } from "./parts.js";

/** A recipe and the settings after it, as a command line has them; either may be missing. */
export interface RecipeArgs {
  readonly source: RecipeSource | undefined;
  readonly overrides: readonly string[];
}

/** Reads `[recipe.yaml] [key=value ...]`. Throws ConfigError if the recipe cannot be read. */
export async function readRecipeArgs(args: readonly string[]): Promise<RecipeArgs> {
  const [first] = args;
  if (first === undefined || first.startsWith("--") || /^[A-Za-z][\w-]*=/.test(first))
    return { source: undefined, overrides: args };
  const { readRecipe } = await import("../recipe/parse.js");
  return { source: await readRecipe(first), overrides: args.slice(1) };
}

/**
 * The same where the first word may also be a folder or a GGUF file: a run's folder stands for the recipe in it, any other for the adapter, with the base
 * that it names, or the model that it holds. A pipeline stands for the stage that made its last policy.
 */
export async function readUseArgs(args: readonly string[]): Promise<RecipeArgs> {
  const [first = "", ...rest] = args;
  const kind = kindOf(first);
  if (kind === "run") return await throughPipeline(await readRecipeArgs([join(first, "recipe.yaml"), ...rest]));
  if (kind === "model") return { source: undefined, overrides: [`model_name_or_path=${first}`, ...rest] };
  if (kind === "adapter") {
    const { readAdapterConfig } = await import("../io/adapters/adapter-folder.js");
    const { base_model_name_or_path: base } = await readAdapterConfig(first);
    const isNamed = typeof base === "string" && base !== "" && !rest.some((word) => word.startsWith("model_name_or_path="));
    const ofBase = isNamed ? [`model_name_or_path=${base}`] : [];
    return { source: undefined, overrides: [...ofBase, `adapter_name_or_path=${first}`, ...rest] };
  }
  const isSetting = first === "" || /^[A-Za-z][\w-]*=/.test(first);
  if (!isSetting && !existsSync(first) && !/\.(ya?ml|json)$/i.test(first))
    throw new ConfigError(`${first}: no such recipe or folder. A model of the hub is given as --model ${first}`);
  return await throughPipeline(await readRecipeArgs(args));
}

/** The recipe of a pipeline stands for that of the stage which made the last policy. Throws ConfigError while stages are left to run. */
async function throughPipeline(args: RecipeArgs): Promise<RecipeArgs> {
  const { source, overrides } = args;
  if (source === undefined) return args;
  const { settingsOf } = await import("../recipe/inference.js");
  const { stages, output_dir: outputDir } = settingsOf(source, overrides);
  if (stages === undefined || stages === null || typeof outputDir !== "string") return args;
  const { readRecipe } = await import("../recipe/parse.js");
  const { resultOfPipeline } = await import("../runs/pipeline-record.js");
  const { file } = source;
  for (const folder of runFoldersOf(file, outputDir)) {
    const result = await resultOfPipeline(folder);
    if (result === null) continue;
    if (result.unfinished === undefined)
      return {
        source: await readRecipe(join(result.folder, "recipe.yaml")),
        overrides: overrides.filter((one) => !/^(--)?stages\b/.test(one)),
      };
    const soFar = result.policy === null ? "" : `; what the stages before have made is in ${result.policy}`;
    throw new ConfigError(
      `${file}: its stage ${result.unfinished} is not done: attune train ${file} resume_from_checkpoint=true goes on${soFar}`,
    );
  }
  throw new ConfigError(`${file}: its stages have not begun in ${outputDir}: attune train ${file}`);
}

/** Where the run of a recipe may lie: the recipe that a run left in its folder leads to it from everywhere. */
function runFoldersOf(file: string, outputDir: string): string[] {
  return basename(file) === "recipe.yaml" ? [dirname(file), outputDir] : [outputDir];
}

/** What a path leads to that can be used. */
export function kindOf(path: string): "recipe" | "run" | "adapter" | "model" | undefined {
  if (!existsSync(path)) return undefined;
  if (/\.ya?ml$/i.test(path)) return "recipe";
  if (/\.gguf$/i.test(path)) return "model";
  const kinds = { run: "recipe.yaml", adapter: "adapter_config.json", model: "config.json" } as const;
  return (Object.keys(kinds) as (keyof typeof kinds)[]).find((kind) => existsSync(join(path, kinds[kind])));
}

/** A flag that says what a setting of recipes says. */
export interface FlagSetting {
  readonly flag: string;
  readonly key: string;
  readonly value: string | number | undefined;
}

/** What a command that uses a model is told by a recipe, the settings after it, and its flags. */
export interface RecipeUse {
  /** As errors name it. */
  readonly file: string;
  /** Settings by name, unchecked: the recipe's own, those of flags and of the words after the recipe, and both together. */
  readonly inFile: Readonly<Record<string, unknown>>;
  readonly after: Readonly<Record<string, unknown>>;
  readonly settings: Readonly<Record<string, unknown>>;
  /** The settings after the recipe, and the flags as such settings. */
  readonly overrides: readonly string[];
  readonly source: RecipeSource;
  /** Where the recipe's own run left its result, if it is one that trains: in place of `adapter_name_or_path`, or of the model too. */
  readonly result: { readonly model?: string; readonly adapter?: string } | undefined;
}

/**
 * Puts recipe, settings and flags together. A recipe that trains stands for what its run has made, unless an adapter is named after it. Throws
 * ConfigError where a flag and the recipe say different things, and where the run has made nothing yet.
 */
export async function readUse({ source, overrides }: RecipeArgs, flags: readonly FlagSetting[]): Promise<RecipeUse> {
  const { settingsOf } = await import("../recipe/inference.js");
  const recipe = source ?? { text: "", file: "command line" };
  const inFile = settingsOf(recipe);
  const written = settingsOf({ text: "", file: "command line" }, overrides);
  const given = flags.filter(({ value }) => value !== undefined);
  const namesResult = "adapter_name_or_path" in written || given.some(({ key }) => key === "adapter_name_or_path");
  const trains = typeof inFile.output_dir === "string" || typeof written.output_dir === "string";
  for (const { flag, key, value } of given) {
    const isStart = trains && key === "adapter_name_or_path"; // what the run began from
    const [where, other] = key in written ? [`${key}=`, written[key]] : [`${recipe.file}: ${key}:`, inFile[key]];
    if (other !== undefined && other !== null && !(isStart && !(key in written)) && String(other) !== String(value))
      throw new ConfigError(
        `${flag} ${value} and ${where} ${other} say different things: leave one out. What stands after the recipe wins over it: ${key}=${value}`,
      );
  }
  const after = { ...written, ...Object.fromEntries(given.map(({ key, value }) => [key, value])) };
  const settings = { ...inFile, ...after };
  const { output_dir: outputDir } = settings;
  return {
    file: recipe.file,
    source: recipe,
    inFile,
    after,
    settings,
    overrides: [...overrides, ...given.filter(({ key }) => !(key in written)).map(({ key, value }) => `${key}=${value}`)],
    result: typeof outputDir === "string" && !namesResult ? await resultOf(recipe.file, outputDir) : undefined,
  };
}

/**
 * The system message that the conversations have in common which a recipe trained on, as `find` finds it in data sets; undefined for a recipe that
 * names none.
 */
export async function systemOf(
  { dataset, dataset_dir: folder = "data", default_system: otherwise }: Readonly<Record<string, unknown>>,
  find: Parts["systemPromptOf"],
): Promise<string | undefined> {
  if (typeof dataset !== "string" && !Array.isArray(dataset)) return undefined;
  const names = Array.isArray(dataset) ? dataset.map(String) : dataset.split(",").map((name) => name.trim());
  return (await find(names, String(folder))) ?? (typeof otherwise === "string" ? otherwise : undefined);
}

/** What a run has made: an adapter, or a whole model. */
async function resultOf(file: string, outputDir: string): Promise<{ model?: string; adapter?: string }> {
  for (const folder of runFoldersOf(file, outputDir)) {
    if (existsSync(join(folder, "adapter_config.json"))) return { adapter: folder };
    if (existsSync(join(folder, "config.json"))) return { model: folder };
  }
  const names = await readdir(outputDir).catch(() => []);
  const newest = names.flatMap((name) => /^checkpoint-(\d+)$/.exec(name)?.[1] ?? []).sort((a, b) => Number(b) - Number(a))[0];
  const path = newest === undefined ? undefined : join(outputDir, `checkpoint-${newest}`);
  throw new ConfigError(
    `${file}: its run has left no result in ${outputDir}: attune train ${file}` +
      (path === undefined ? "" : `, or use its newest checkpoint: adapter_name_or_path=${path}`),
  );
}

/** Throws ConfigError if what a recipe trains is not for this command. */
export async function checkStage({ file, settings, result }: RecipeUse, command: string): Promise<void> {
  const { objectives } = await import("../objectives/index.js");
  const { RecipeKeys } = await import("../recipe/schema.js");
  const stage = settings.stage ?? (result && RecipeKeys.shape.stage.parse(undefined));
  const usedBy = objectives.find(({ name }) => name === stage)?.usedBy;
  if (usedBy !== undefined && usedBy !== command)
    throw new ConfigError(`${file}: stage ${stage} is used by attune ${usedBy}, not by attune ${command}`);
}

/** A setting that is a text, or is not there. Throws ConfigError for what is neither. */
export function textOf({ file, settings }: RecipeUse, key: string): string | undefined {
  const value = settings[key] ?? undefined;
  if (value === undefined || typeof value === "string") return value;
  throw new ConfigError(`${file}: ${key}: expected a text, got ${JSON.stringify(value)}`);
}

/** The flags that name what a command opens. */
export interface ModelFlags {
  readonly model?: string | undefined;
  readonly adapter?: string | undefined;
}

/** What a command for one stage opens, as a recipe or folder, if the first argument is one, and flags name it, and the arguments that are left. Throws ConfigError. */
export async function modelFor(
  command: string,
  args: readonly string[],
  flags: ModelFlags,
): Promise<{
  readonly model: string;
  readonly adapter: string | undefined;
  readonly rest: readonly string[];
  readonly use: RecipeUse;
}> {
  const isRecipe = kindOf(args[0] ?? "") !== undefined;
  const use = await readUse(await readUseArgs(isRecipe ? args.slice(0, 1) : []), [
    { flag: "--model", key: "model_name_or_path", value: flags.model },
    { flag: "--adapter", key: "adapter_name_or_path", value: flags.adapter },
  ]);
  await checkStage(use, command);
  return {
    model: required("model", use.result?.model ?? textOf(use, "model_name_or_path")),
    adapter: use.result === undefined ? textOf(use, "adapter_name_or_path") : use.result.adapter,
    rest: isRecipe ? args.slice(1) : args,
    use,
  };
}
