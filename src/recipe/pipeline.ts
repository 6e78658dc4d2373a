import { join } from "node:path";
import { stringify } from "yaml";
import { ConfigError } from "../errors.js";
import { aliases } from "./foreign-keys.js";
import {
  checkLayers,
  type Given,
  type RecipeSource,
  readOverrides,
  readSettings,
  resolveNames,
  type Setting,
  settingsIn,
  settingsOf,
} from "./parse.js";
import type { RecipeSettings } from "./recipe-settings.js";
import { axesOf, keySchemas, type Method, type Methods, type Recipe, RecipeKeys } from "./schema.js";

/** One run of a pipeline. */
export interface Stage {
  /** Also of its folder in `output_dir`: number and objective, such as `2-rm`. */
  readonly name: string;
  /** Begins from what the stages before save. Whether to resume or to overwrite is the pipeline's to say. */
  readonly recipe: Recipe;
  /** The same from the model that the stages before it begin with, of which all is there already: to be checked, and not run. */
  readonly draft: Recipe;
  /** Whether later stages begin from what it makes: it trains, and what it makes is no judge. */
  readonly isPolicy: boolean;
}

/** Runs, one after the other, each from what the ones before saved: a recipe with `stages`. */
export interface Pipeline {
  readonly outputDir: string;
  readonly resume: boolean;
  readonly overwrite: boolean;
  readonly stages: readonly Stage[];
  /** Settings that are checked to the same pipeline, every default written out. */
  readonly settings: RecipeSettings;
}

export type Work =
  | { readonly recipe: Recipe; readonly pipeline?: never }
  | { readonly pipeline: Pipeline; readonly recipe?: never };

export type ParsedWork = Work & {
  /** As of `ParsedRecipe`; what only some stages have to say begins with their name. */
  readonly notices: readonly string[];
};

/** `parseRecipe` for whoever also takes pipelines: every stage is checked before any begins. Throws ConfigError. */
export function parseWork(source: RecipeSource | undefined, overrides: readonly string[], methods: Methods): ParsedWork {
  return check(source ? readSettings(source) : [], readOverrides(overrides), source?.file ?? "recipe", methods);
}

/** `checkRecipe` for whoever also takes pipelines. */
export function checkWork(values: object, methods: Methods): ParsedWork {
  return check(settingsIn(values, "recipe"), [], "recipe", methods);
}

/** The settings that are checked to the same work, every default written out. */
export function settingsOfWork({ recipe, pipeline }: Work): RecipeSettings {
  return recipe === undefined ? pipeline.settings : settingsOf(recipe);
}

/** A pipeline as YAML, but for what concerns only the run at hand. */
export function formatPipeline({ settings: { resume_from_checkpoint, overwrite_output_dir, ...lasting } }: Pipeline): string {
  return stringify(lasting, { lineWidth: 0, compat: "yaml-1.1" });
}

/** What is said of the whole pipeline, and of no single stage. */
const ofPipeline = ["stages", "output_dir", "resume_from_checkpoint", "overwrite_output_dir"];
/** From where a pipeline begins. */
const ofStart = ["model_name_or_path", "model_revision", "adapter_name_or_path"];

function check(file: readonly Setting[], overrides: readonly Setting[], name: string, methods: Methods): ParsedWork {
  const names = { file: name, problems: [] as string[], notices: [] };
  const all = resolveNames([file, overrides], keySchemas(RecipeKeys), names);
  const list = all.get("stages");
  if (list === undefined || list.value === null) return checkLayers([file, overrides], name, methods);
  const alone = all.get("stage");
  if (alone !== undefined)
    throw new ConfigError(`${alone.where}: stage and stages both say what is minimised; remove one, or write it into its stage`);
  if (names.problems.length > 0) throw new ConfigError(names.problems.join("\n"));
  return new PipelineCheck({ file, overrides, name, methods }, all, itemsOf(list)).run();
}

/** What each stage sets of its own. Throws ConfigError for a list that is none. */
function itemsOf({ value, where, items }: Setting): readonly (readonly Setting[])[] {
  const checked = RecipeKeys.shape.stages.safeParse(value);
  if (!checked.success || checked.data === null)
    throw new ConfigError(
      `${where}: stages: expected a list of names, or of mappings with a stage and its own settings, such as [sft, dpo]`,
    );
  return checked.data.map((item, i) => {
    const place = `${where}: stages, item ${i + 1}`;
    if (typeof item === "string") return [{ name: "stage", value: item, where: place }];
    const own = items?.[i] ?? settingsIn(item, place);
    const misplaced = own.find((setting) => ofPipeline.includes(keyOf(setting)));
    if (misplaced !== undefined)
      throw new ConfigError(`${misplaced.where}: ${misplaced.name} is said once, for all stages: write it beside stages`);
    if (!own.some((setting) => keyOf(setting) === "stage"))
      throw new ConfigError(
        `${own[0]?.where ?? place}: item ${i + 1} of stages does not say which stage it is: add stage, such as stage: sft`,
      );
    return own;
  });
}

interface Written {
  readonly file: readonly Setting[];
  readonly overrides: readonly Setting[];
  readonly name: string;
  readonly methods: Methods;
}

/** A stage whose settings are in order, and what was set on its account by those before it. */
interface Checked extends Stage {
  readonly objective: Method;
  readonly tuner: Method;
  /** The names of what its item of the list says, and of what those before it say. */
  readonly own: ReadonlySet<string>;
  readonly given: ReadonlySet<string>;
}

class PipelineCheck {
  readonly #written: Written;
  readonly #all: Given;
  readonly #items: readonly (readonly Setting[])[];
  /** What is said, and by which stages. */
  readonly #problems = new Map<string, number[]>();
  readonly #notices = new Map<string, number[]>();

  constructor(written: Written, all: Given, items: readonly (readonly Setting[])[]) {
    this.#written = written;
    this.#all = all;
    this.#items = items;
  }

  run(): ParsedWork {
    const done: Checked[] = [];
    for (const [i, item] of this.#items.entries()) {
      const checked = this.#stage(i, item, done);
      if (checked !== undefined) done.push(checked);
    }
    const common = this.#common();
    if (this.#problems.size > 0 || common === undefined) throw new ConfigError(this.#told(this.#problems).join("\n"));
    const stages = done.map(({ name, recipe, draft, isPolicy }) => ({ name, recipe, draft, isPolicy }));
    return { pipeline: { ...common, stages, settings: this.#settings(done, common) }, notices: this.#told(this.#notices) };
  }

  #stage(i: number, item: readonly Setting[], before: readonly Checked[]): Checked | undefined {
    const { file, overrides, name: fileName, methods } = this.#written;
    const stage = this.#stageOf(i);
    const name = `${i + 1}-${stage}`;
    const own = new Set(item.map(keyOf));
    const objective = methods.objectives.find((one) => one.name === stage);
    const predecessor = beginsAnew(own) ? undefined : before.findLast(({ isPolicy }) => isPolicy);
    const handed = handedOver(before, objective, own);
    const given = [...this.#ofPipeline(name), ...(predecessor === undefined ? [] : startFrom(predecessor)), ...handed];
    const isAboveAll = (setting: Setting) => ![...ofPipeline, ...ofStart].includes(keyOf(setting));
    const quiet = { file: fileName, problems: [], notices: [] };
    const top = resolveNames([file, overrides.filter((one) => !isAboveAll(one))], {}, quiet);
    const layers = [[...top.values()], given, item, overrides.filter(isAboveAll)];
    try {
      const beside = { shared: new Set([...file, ...overrides]), methods: this.#others(i) };
      const { recipe, notices } = checkLayers(layers, fileName, methods, beside);
      for (const notice of notices) note(this.#notices, notice, i);
      const tuner = methods.tuners.find((one) => one.name === recipe.finetuning_type)!;
      const problem = predecessor && startProblem({ recipe, tuner }, predecessor);
      if (problem !== undefined) note(this.#problems, problem, i);
      const isPolicy = recipe.do_train && objective!.handsOver === undefined;
      const draft = draftOf(recipe, predecessor, handed);
      return { name, recipe, draft, isPolicy, objective: objective!, tuner, own, given: new Set(given.map((one) => one.name)) };
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      for (const line of error.message.split("\n")) note(this.#problems, line, i);
      return undefined;
    }
  }

  #stageOf(i: number): string {
    return String(this.#items[i]!.find((setting) => keyOf(setting) === "stage")!.value);
  }

  /** What the other stages are made of. */
  #others(own: number): Method[] {
    const axes = axesOf(this.#written.methods);
    return this.#items.flatMap((item, i) => {
      if (i === own) return [];
      return Object.entries(axes).flatMap(([key, choices]: [string, readonly Method[]]) => {
        const settings = [this.#written.overrides, item].map((all) => all.find((setting) => keyOf(setting) === key));
        const setting = settings.find((one) => one !== undefined) ?? this.#all.get(key);
        const name = setting?.value ?? keySchemas(RecipeKeys)[key]?.default;
        return choices.filter((choice) => choice.name === name);
      });
    });
  }

  /** The stage's own folder; whether to resume and to overwrite is asked of the pipeline. */
  #ofPipeline(name: string): Setting[] {
    const { raw, value = null, where = this.#written.name } = this.#all.get("output_dir") ?? {};
    const folder = raw ?? value;
    const values = { output_dir: typeof folder === "string" && folder !== "" ? join(folder, name) : folder };
    return settingsIn({ ...values, stages: null, resume_from_checkpoint: null, overwrite_output_dir: null }, where);
  }

  #common(): Common | undefined {
    const [resume, overwrite] = (["resume_from_checkpoint", "overwrite_output_dir"] as const).map((key) => {
      const { value = null, where } = this.#all.get(key) ?? {};
      if (value === null || typeof value === "boolean") return value ?? false;
      const why = key === "resume_from_checkpoint" ? "a pipeline finds by itself where it stopped: " : "";
      for (const i of this.#items.keys()) note(this.#problems, `${where}: ${key}: ${why}expected true or false`, i);
      return undefined;
    });
    const { raw, value } = this.#all.get("output_dir") ?? {};
    if (resume === undefined || overwrite === undefined) return undefined;
    return { outputDir: raw ?? String(value), resume, overwrite: overwrite && !resume };
  }

  /** What all stages say, once; what some say, under their names. */
  #told(said: ReadonlyMap<string, readonly number[]>): string[] {
    return [...said].map(([text, stages]) => {
      if (stages.length === this.#items.length) return text;
      const names = stages.map((i) => `${i + 1} (${this.#stageOf(i)})`).join(", ");
      return `stage${stages.length > 1 ? "s" : ""} ${names}: ${text}`;
    });
  }

  /** Each stage with all of its settings, but for what those before it say. */
  #settings(stages: readonly Checked[], { outputDir, resume, overwrite }: Common): RecipeSettings {
    const [{ recipe: first }] = stages as [Checked];
    const start = ofStart.flatMap((key) => {
      const { raw, value = null } = this.#all.get(key) ?? {};
      return value === null ? [] : [[key, raw ?? value]];
    });
    const list = stages.map(({ recipe, own, given }) => {
      const isSaid = (key: string) => own.has(key) || !(ofStart.includes(key) || given.has(key));
      const settings = Object.entries(settingsOf(recipe)).filter(([key]) => isSaid(key));
      return Object.fromEntries([...(own.has("adapter_name_or_path") ? [["adapter_name_or_path", null]] : []), ...settings]);
    });
    return {
      model_name_or_path: first.model_name_or_path,
      ...Object.fromEntries(start),
      dataset: first.dataset,
      output_dir: outputDir,
      ...(resume && { resume_from_checkpoint: true }),
      ...(overwrite && { overwrite_output_dir: true }),
      stages: list,
    } as unknown as RecipeSettings;
  }
}

type Common = Pick<Pipeline, "outputDir" | "resume" | "overwrite">;

const keyOf = ({ name }: Setting): string => (Object.hasOwn(RecipeKeys.shape, name) ? name : (aliases[name] ?? name));

function note(said: Map<string, number[]>, text: string, stage: number): void {
  const stages = said.get(text) ?? [];
  if (!stages.includes(stage)) said.set(text, [...stages, stage]);
}

/** Whether a stage says itself from what it begins. */
function beginsAnew(own: ReadonlySet<string>): boolean {
  return own.has("model_name_or_path") || own.has("adapter_name_or_path");
}

/** The settings by which a stage begins from what another saved: an adapter goes on over the same base. */
function startFrom({ name, recipe, tuner }: Checked): Setting[] {
  const { output_dir, model_name_or_path, model_revision } = recipe;
  const settings =
    tuner.adapter === undefined
      ? { model_name_or_path: output_dir, model_revision: null, adapter_name_or_path: null }
      : { model_name_or_path, model_revision, adapter_name_or_path: output_dir };
  return settingsIn(settings, `what ${name} saves`);
}

/** The recipe without what is not there before the stages before it have run. */
function draftOf(recipe: Recipe, predecessor: Checked | undefined, handed: readonly Setting[]): Recipe {
  const objective = { ...recipe.objective, ...Object.fromEntries(handed.map(({ name }) => [name, null])) };
  if (predecessor === undefined) return { ...recipe, objective };
  const { model_name_or_path, model_revision } = predecessor.draft;
  return { ...recipe, model_name_or_path, model_revision, adapter_name_or_path: null, create_new_adapter: false, objective };
}

/** An adapter goes on under a method that reads it; of any other, a new one may be trained over it. */
function startProblem(
  { recipe, tuner }: Pick<Checked, "recipe" | "tuner">,
  { name, tuner: before, recipe: { finetuning_type } }: Checked,
): string | undefined {
  if (before.adapter === undefined || before.adapter === tuner.adapter) return undefined;
  if (tuner.adapter === undefined)
    return (
      `finetuning_type ${tuner.name} trains the model itself, and ${name} leaves an adapter (${finetuning_type}): ` +
      `train ${name} with ${tuner.name}, too, or write a model_name_or_path into this stage`
    );
  if (recipe.create_new_adapter) return undefined;
  return (
    `finetuning_type ${tuner.name} cannot go on from the adapter that ${name} leaves (${finetuning_type}): ` +
    "use the same, or write create_new_adapter: true into this stage to train a new one over it"
  );
}

/** What stages that make no policy give to a later one that has a setting for it; of two, the later. */
function handedOver(before: readonly Checked[], objective: Method | undefined, own: ReadonlySet<string>): Setting[] {
  const known = objective?.config === undefined ? {} : keySchemas(objective.config);
  const given = new Map<string, Setting>();
  for (const { name, recipe, tuner, objective: maker } of before) {
    if (!recipe.do_train || maker.handsOver === undefined) continue;
    const settings = maker.handsOver(recipe.output_dir, tuner.adapter === undefined ? "model" : "adapter");
    if (Object.keys(settings).some((key) => own.has(key))) continue; // the stage names another
    for (const setting of settingsIn(settings, `what ${name} saves`))
      if (Object.hasOwn(known, setting.name)) given.set(setting.name, setting);
  }
  return [...given.values()];
}
