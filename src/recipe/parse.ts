import { readFile } from "node:fs/promises";
import { CST, isMap, isScalar, isSeq, Lexer, LineCounter, type Node, parseDocument, stringify, type YAMLMap } from "yaml";
import type { z } from "zod";
import { ConfigError } from "../errors.js";
import { systemErrorCode } from "../io/disk.js";
import { optimizerKeys } from "../optim/optimizer.js";
import { optimizerNamed } from "../optim/optimizers.js";
import { type Schedule, schedules } from "../optim/schedule.js";
import { closest, nearest } from "../text/closest.js";
import {
  aliases,
  differently,
  knownStages,
  knownTuners,
  needless,
  type RefusedKey,
  refused,
  refusedValues,
  stagesElsewhere,
} from "./foreign-keys.js";
import type { RecipeSettings } from "./recipe-settings.js";
import {
  axesOf,
  commonSteps,
  expectation,
  type KeySchema,
  keySchemas,
  type Method,
  type Methods,
  otherReporters,
  type Recipe,
  RecipeKeys,
  type Steps,
} from "./schema.js";

export interface RecipeSource {
  readonly text: string;
  /** As error messages name it. */
  readonly file: string;
}

export interface ParsedRecipe {
  readonly recipe: Recipe;
  /** One line each: a setting that was renamed, or dropped with the reason. */
  readonly notices: readonly string[];
}

/** Reads a recipe file. Throws ConfigError if it is not there or no text. */
export async function readRecipe(path: string): Promise<RecipeSource> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch (error) {
    const code = systemErrorCode(error);
    const why =
      code === "ENOENT" ? "no such file" : code === "EISDIR" ? "a folder; expected a YAML file" : `cannot be read (${code})`;
    throw new ConfigError(`${path}: ${why}`, { cause: error });
  }
  try {
    return { text: new TextDecoder("utf-8", { fatal: true }).decode(bytes), file: path };
  } catch (error) {
    throw new ConfigError(`${path}: not UTF-8 text; expected a YAML file`, { cause: error });
  }
}

/** One setting as somebody wrote it. */
export interface Setting {
  /** The name as written, but with underscores. */
  readonly name: string;
  readonly value: unknown;
  /** `recipe.yaml:14`, or `override "seed=x"`. */
  readonly where: string;
  /** The text of an override, which is what a setting that takes text gets: `output_dir=2026` is no number. */
  readonly raw?: string;
  /** Of a list in a file: what each of its items sets, each with its own line; undefined for an item that is no mapping. */
  readonly items?: readonly (readonly Setting[] | undefined)[];
}

/**
 * Reads a recipe (YAML or JSON, told apart by nothing: JSON is YAML) and the overrides of a command line, `key=value`, `--key value` or
 * `--key`, which win over the file. Dashes in names are underscores; null means not set.
 *
 * Throws ConfigError that lists every problem found, each with file and line or the override.
 */
export function parseRecipe(source: RecipeSource | undefined, overrides: readonly string[], methods: Methods): ParsedRecipe {
  return checkLayers([source ? readSettings(source) : [], readOverrides(overrides)], source?.file ?? "recipe", methods);
}

/** The same checks for settings that come as an object, as from the library's users. */
export function checkRecipe(values: object, methods: Methods): ParsedRecipe {
  return checkLayers([settingsIn(values, "recipe")], "recipe", methods);
}

/** Settings that come as an object. */
export function settingsIn(values: object, where: string): Setting[] {
  const set = Object.entries(values).filter(([, value]) => value !== undefined);
  return set.map(([key, value]) => ({ name: snakeCase(key), value, where }));
}

/** The settings that are checked to the same recipe, every default written out and all under our names. */
export function settingsOf(recipe: Recipe): RecipeSettings {
  const { tuner, objective, backendConfig, eval_steps, ...common } = recipe;
  const evaluation = recipe.eval_strategy === "steps" ? { eval_steps } : {};
  const settings = Object.entries({ ...common, ...evaluation, ...tuner, ...objective, ...backendConfig });
  return Object.fromEntries(settings.filter(([, value]) => value !== null)) as unknown as RecipeSettings;
}

/** `settingsOf` as YAML, but for what concerns only the run at hand: whether to resume or to overwrite. */
export function formatRecipe(recipe: Recipe): string {
  const { resume_from_checkpoint, overwrite_output_dir, ...lasting } = settingsOf(recipe);
  return stringify(lasting, { lineWidth: 0, compat: "yaml-1.1" });
}

const maxRecipeBytes = 1 << 20;

export function readSettings({ text, file }: RecipeSource): Setting[] {
  if (Buffer.byteLength(text) > maxRecipeBytes) throw new ConfigError(`${file}: expected a recipe, which is never over 1 MB`);
  if (nestsDeeply(text)) throw new ConfigError(`${file}: expected settings, got lists in lists without end`);
  const lines = new LineCounter();
  const line = (offset: number) => `${file}:${lines.linePos(offset).line}`;
  try {
    const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, logLevel: "error" });
    const problems = [...document.errors, ...document.warnings]; // a warning is a tag or directive that would be ignored
    if (problems.length > 0) {
      throw new ConfigError(
        problems.map(({ code, message, pos }) => `${line(pos[0])}: ${explain(code, message, text.slice(pos[0]))}`).join("\n"),
      );
    }
    const { contents } = document;
    if (contents === null) return [];
    if (!isMap(contents)) throw new ConfigError(`${line(contents.range[0])}: expected settings, one \`name: value\` a line`);
    const settingsOf = (map: YAMLMap, isItem = false): Setting[] =>
      map.items.map(({ key, value }) => {
        const node = key as Node;
        const where = line(node.range?.[0] ?? 0);
        if (!isScalar(node)) throw new ConfigError(`${where}: expected the name of a setting`);
        return {
          name: snakeCase(String(node.value)),
          value: (value as Node | null)?.toJS(document, { maxAliasCount: 100 }) ?? null,
          where,
          ...(isSeq(value) &&
            !isItem && { items: value.items.map((item) => (isMap(item) ? settingsOf(item, true) : undefined)) }),
        };
      });
    return settingsOf(contents);
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    // The library throws where aliases multiply.
    throw new ConfigError(`${file}: cannot be read as YAML: ${(error as Error).message}`, { cause: error });
  }
}

/** Nesting is counted by the lexer first: the parser recurses, and a stack overflow in it would end the whole process. */
function nestsDeeply(text: string): boolean {
  const maxDepth = 32;
  let brackets = 0;
  let indicatorsOnLine = 0;
  for (const token of new Lexer().lex(text)) {
    const type = CST.tokenType(token);
    if (type === "flow-seq-start" || type === "flow-map-start") brackets++;
    else if (type === "flow-seq-end" || type === "flow-map-end") brackets = Math.max(0, brackets - 1);
    else if (type === "newline") indicatorsOnLine = 0;
    else if (type === "seq-item-ind" || type === "explicit-key-ind") indicatorsOnLine++;
    if (brackets > maxDepth || indicatorsOnLine > maxDepth) return true;
  }
  return false;
}

function explain(code: string, message: string, rest: string): string {
  if (code === "DUPLICATE_KEY") return `${/^[^\s:]+/.exec(rest)?.[0] ?? "a setting"} is set twice`;
  if (code === "MULTIPLE_DOCS") return "a recipe is one document; remove the line `---`";
  return `not valid YAML: ${message}`;
}

export function readOverrides(args: readonly string[]): Setting[] {
  const settings: Setting[] = [];
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]!;
    const [, dashes, key, value] = /^(--)?([A-Za-z][\w-]*)(?:=(.*))?$/s.exec(arg) ?? [];
    if (key === undefined || (!dashes && value === undefined)) {
      throw new ConfigError(`unexpected argument ${quote(arg)}: settings are written key=value or --key value`);
    }
    let raw = value;
    let written = arg;
    const next = args[i + 1];
    if (raw === undefined && next !== undefined && !next.startsWith("--") && !/^[A-Za-z][\w-]*=/.test(next)) {
      raw = next;
      written = `${arg} ${next}`;
      i++;
    }
    raw ??= "true";
    settings.push({ name: snakeCase(key), value: scalar(raw), where: `override ${quote(written)}`, raw });
  }
  return settings;
}

/** Numbers, booleans, null, lists and quoted text as YAML reads them; all else is the text itself. */
function scalar(raw: string): unknown {
  if (nestsDeeply(raw)) return raw;
  const document = parseDocument(raw, { logLevel: "silent" });
  if (document.errors.length > 0 || document.warnings.length > 0 || /^[&*!]/.test(raw)) return raw;
  const value = contentsOf(document);
  const isPlainText = typeof value === "string" && !/^["']/.test(raw);
  const isBlock = typeof value === "object" && value !== null && !/^[[{]/.test(raw);
  return isPlainText || isBlock || value === undefined ? raw : value;
}

/** The value of a document; undefined where its aliases multiply beyond bounds. */
function contentsOf(document: ReturnType<typeof parseDocument>): unknown {
  try {
    return document.toJS();
  } catch {
    return undefined;
  }
}

/** What has been found so far: all problems are reported at once. */
export interface Report {
  readonly file: string;
  readonly problems: string[];
  readonly notices: string[];
}

type Keys = Readonly<Record<string, KeySchema>>;

/** What is set, by the name of the setting. */
export type Given = ReadonlyMap<string, Setting>;

/** What else reads settings of the same file: other stages of a pipeline. */
export interface Beside {
  /** The settings that are theirs, too. */
  readonly shared: ReadonlySet<Setting>;
  readonly methods: readonly Method[];
}

/** `layers` come in rising order of weight: what is set in a later one replaces what an earlier one says. Throws ConfigError, as `parseRecipe`. */
export function checkLayers(
  layers: readonly (readonly Setting[])[],
  file: string,
  methods: Methods,
  beside: Beside = { shared: new Set(), methods: [] },
): ParsedRecipe {
  const report: Report = { file, problems: [], notices: [] };
  const axes = axesOf(methods);
  const common = keySchemas(RecipeKeys);
  const known: Keys = Object.assign({}, common, ...Object.values(axes).flat().map(keysOf));

  const named = resolveNames(layers, known, report);
  const tuner = choose("finetuning_type", knownTuners);
  const objective = choose("stage", knownStages);
  const backend = choose("backend", []);
  const chosen = { finetuning_type: tuner, stage: objective, backend };
  const given = sortOut(inOwnNames(named, chosen, report), { known, ...fatesOf(axes, chosen, common) }, report);
  tellIdle(given, axes, chosen, beside, report);

  const checked = validate(RecipeKeys, withDataset(given), report);
  const settings = checked && { ...checked, ...optimOf(checked, given, report) };
  const [tunerConfig, objectiveConfig, backendConfig] = [tuner, objective, backend].map((method) =>
    method?.config ? validate(method.config, given, report) : {},
  ) as Recipe["tuner"][];
  const narrowed = (objective?.narrows && validate(objective.narrows, given, report)) as Partial<Recipe> | undefined;
  const steps = settings && tuner && tunerConfig && stepsOf(settings, { tuner, tunerConfig, objective }, report);
  const evaluation = steps && relate({ ...settings, ...steps }, given, report);
  if (report.problems.length > 0) throw new ConfigError(report.problems.join("\n"));
  const ofMethods = { tuner: tunerConfig!, objective: objectiveConfig!, backendConfig: backendConfig! };
  return { recipe: { ...settings!, ...steps!, ...evaluation!, ...narrowed, ...ofMethods }, notices: report.notices };

  function choose(key: keyof typeof axes, elsewhere: readonly string[]): Method | undefined {
    const choices: readonly Method[] = axes[key];
    const name = named.get(key)?.value ?? common[key]!.default;
    const choice = choices.find((candidate) => candidate.name === name);
    if (choice || typeof name !== "string") return choice; // validate() reports what is not text
    if (key === "stage" && Object.hasOwn(stagesElsewhere, name)) {
      report.problems.push(`${named.get(key)?.where ?? file}: stage: ${name} ${stagesElsewhere[name]}`);
      return undefined;
    }
    const said = elsewhere.includes(name) ? `${name} is not there yet` : `unknown: ${quote(name)}`;
    const names = choices.map((candidate) => candidate.name).join(", ");
    report.problems.push(`${named.get(key)?.where ?? file}: ${key}: ${said}; expected one of ${names}`);
    return undefined;
  }
}

function keysOf({ config }: Method): Keys {
  return config ? keySchemas(config) : {};
}

type Axes = Readonly<Record<string, readonly Method[]>>;

/** By the same names as the axes; undefined where a problem was reported. */
type Chosen = Readonly<Record<string, Method | undefined>>;

/** What the methods that are chosen do not need, and what only others could do without. */
function fatesOf(axes: Axes, chosen: Chosen, common: Keys): Omit<Fates, "known"> {
  const ofChosen = Object.values(chosen).filter((method) => method !== undefined);
  const read: Keys = Object.assign({}, common, ...ofChosen.map(keysOf));
  const reasons: Record<string, string> = Object.assign({}, needless, ...ofChosen.map((method) => method.needless));
  const refusals: Record<string, RefusedKey> = { ...refused };
  for (const [axis, choices] of Object.entries(axes))
    for (const key of choices.flatMap((method) => Object.keys(method.needless ?? {})))
      if (chosen[axis] === undefined) reasons[key] ??= "";
      else if (!Object.hasOwn(reasons, key)) refusals[key] ??= { why: `it is not for ${axis}: ${chosen[axis].name}` };
  return {
    needless: Object.fromEntries(Object.entries(reasons).filter(([key]) => !Object.hasOwn(read, key))),
    refused: refusals,
  };
}

/** Tells of settings that only methods read that are not chosen. */
function tellIdle(given: Given, axes: Axes, chosen: Chosen, beside: Beside, { notices }: Report): void {
  const methods = Object.values(axes).flat();
  for (const [key, setting] of given) {
    const owners = methods.filter((method) => Object.hasOwn(keysOf(method), key));
    const readers = [...Object.values(chosen), ...(beside.shared.has(setting) ? beside.methods : [])];
    if (owners.length === 0 || owners.some((owner) => readers.includes(owner))) continue;
    notices.push(`${setting.where}: ${key} is not used: only ${owners.map(({ name }) => name).join(" and ")} reads it`);
  }
}

/** What is set, under our names: settings of later layers in the place of those of earlier ones. */
export function resolveNames(layers: readonly (readonly Setting[])[], known: Keys, { problems }: Report): Given {
  const keyOf = (name: string) => (!Object.hasOwn(known, name) && Object.hasOwn(aliases, name) ? aliases[name]! : name);
  const named = new Map<string, Setting>();
  for (const layer of layers) {
    const inThisLayer = new Map<string, Setting>();
    for (const setting of layer) {
      const key = keyOf(setting.name);
      const earlier = inThisLayer.get(key);
      if (earlier) problems.push(`${setting.where}: ${key} is set twice (first by ${earlier.where})`);
      inThisLayer.set(key, setting);
    }
    for (const [key, setting] of inThisLayer) named.set(key, setting);
  }
  return named;
}

/** The same under the names of the methods that are chosen: other trainers call several settings of different methods alike. */
function inOwnNames(named: Given, chosen: Chosen, { problems }: Report): Given {
  const methods = Object.values(chosen).filter((method) => method !== undefined);
  const renamed = new Map(named);
  for (const [key, setting] of named) {
    if (methods.some((method) => Object.hasOwn(keysOf(method), key))) continue;
    const own = methods.map(({ otherNames }) => otherNames?.[key]).find((name) => name !== undefined);
    if (own === undefined) continue;
    const earlier = named.get(own);
    if (earlier) problems.push(`${setting.where}: ${own} is set twice (also by ${earlier.where})`);
    renamed.delete(key);
    renamed.set(own, setting);
  }
  return renamed;
}

/** What becomes of settings, by name. */
export interface Fates {
  readonly known: Keys;
  /** Why it changes nothing here; stronger than `known`. */
  readonly needless: Readonly<Record<string, string>>;
  /** Why it is refused, but for some values. */
  readonly refused: Readonly<Record<string, RefusedKey>>;
}

/** Sorts settings into those that are read (returned), those that are explained, refused, and unknown. */
export function sortOut(named: Given, { known, needless, refused }: Fates, { problems, notices }: Report): Given {
  const otherwise: Readonly<Record<string, string>> = differently;
  const given = new Map<string, Setting>();
  for (const [key, setting] of named) {
    const { name, value, where } = setting;
    if (![known, needless, otherwise, refused].some((keys) => Object.hasOwn(keys, key))) {
      const ours = nearest(key, Object.keys(known));
      const near = ours.length > 0 ? ours : nearest(key, [needless, otherwise, refused, aliases].flatMap(Object.keys));
      problems.push(`${where}: unknown setting ${quote(name)}. ${didYouMean(near, "docs/recipe.md lists the settings")}`);
    } else if (value === null) {
      // Not set.
    } else if (Object.hasOwn(needless, key)) {
      notices.push(`${where}: ${name} is not needed: ${needless[key]}`);
    } else if (Object.hasOwn(known, key)) {
      if (key !== name) notices.push(`${where}: ${name} is read as ${key}`);
      given.set(key, setting);
    } else if (Object.hasOwn(otherwise, key)) {
      notices.push(`${where}: ${name} is taken differently: ${otherwise[key]}`);
    } else {
      const { harmless = [false, 0], why, instead } = refused[key]!;
      const changesNothing = harmless.some((other) => JSON.stringify(other) === JSON.stringify(value));
      const advice = instead ? `write ${instead} instead` : "remove it";
      if (!changesNothing) problems.push(`${where}: ${name}: ${show(value)} is not supported: ${why}; ${advice}`);
    }
  }
  return given;
}

/** `Did you mean "a" or "b"?`, and what to do where nothing is near. */
function didYouMean(near: readonly string[], otherwise: string): string {
  if (near.length === 0) return otherwise;
  const last = quote(near.at(-1)!);
  const earlier = near.slice(0, -1).map(quote).join(", ");
  return `Did you mean ${earlier ? `${earlier} or ` : ""}${last}?`;
}

/** A recipe that trains nothing needs no rows to train on: the held-out ones stand for them. */
function withDataset(given: Given): Given {
  const heldOut = given.get("eval_dataset");
  if (heldOut === undefined || given.has("dataset")) return given;
  const doesElse = ["do_predict", "do_eval"].some((key) => given.get(key)?.value === true);
  if ((given.get("do_train")?.value ?? !doesElse) !== false) return given;
  return new Map([...given, ["dataset", heldOut], ["do_train", { ...heldOut, name: "do_train", value: false, raw: "false" }]]);
}

/** Reads the settings that the schema knows out of `given`. Returns undefined if a problem was reported. */
export function validate<T>(schema: z.ZodType<T>, given: Given, { file, problems }: Report): T | undefined {
  const keys: Keys = keySchemas(schema);
  const ours = [...given].filter(([key]) => Object.hasOwn(keys, key));
  const values = Object.fromEntries(ours.map(([key, { value }]) => [key, value]));
  let result = schema.safeParse(values);

  if (!result.success) {
    for (const { path } of result.error.issues) {
      const key = String(path[0]);
      const expected = keys[key];
      const setting = given.get(key);
      if (!expected || !setting) continue;
      const text = setting.raw ?? setting.value;
      if (typeof text !== "string") continue;
      if (takes("string", expected)) values[key] = text;
      else if (takes("array", expected)) values[key] = text.split(",").map((item) => item.trim());
    }
    result = schema.safeParse(values);
  }
  if (result.success) return result.data;

  const reported = new Set<string>();
  for (const issue of result.error.issues) {
    const { path, message } = issue;
    const key = String(path[0] ?? "");
    if (issue.code === "custom" && issue.params?.isSaid === true) {
      // The schema says itself what is wrong inside a setting.
      reported.add(key);
      problems.push(`${given.get(key)?.where ?? file}: ${key}: ${message}`);
    }
    if (reported.has(key)) continue;
    reported.add(key);
    const setting = given.get(key);
    const expected = keys[key];
    if (!expected) problems.push(`${file}: ${message}`);
    else if (!setting) problems.push(`${file}: ${key} is missing: ${expected.description ?? expectation(expected)}`);
    else {
      const { where, value } = setting;
      const reasons = refusedValues[key];
      const isKnown = reasons !== undefined && Object.hasOwn(reasons, String(value));
      const hinted = isKnown ? `: ${reasons[String(value)]}` : hint(value, expected);
      problems.push(`${where}: ${key}: expected ${expectation(expected)}, got ${show(value)}${hinted}`);
    }
  }
  return undefined;
}

type CommonSettings = z.output<typeof RecipeKeys>;

interface StepChoice {
  readonly tuner: Method;
  readonly tunerConfig: Recipe["tuner"];
  readonly objective: Method | undefined;
}

/** The optimizer, which two settings may name. */
function optimOf(
  { optim, use_muon }: CommonSettings,
  given: Given,
  { notices }: Report,
): Pick<CommonSettings, "optim" | "use_muon"> {
  const named = given.get("optim");
  if (use_muon && named !== undefined && optim !== "muon") notices.push(`${named.where}: optim is not used: use_muon is true`);
  const chosen = use_muon ? "muon" : optim;
  return { optim: chosen, use_muon: chosen === "muon" };
}

/**
 * Rate, accumulation and warm-up belong together. A recipe that names a rate was tuned with it, and gets what other trainers take for the rest; one that
 * names none gets what the method learns with, but for what it names.
 */
function stepsOf(recipe: CommonSettings, { tuner, tunerConfig, objective }: StepChoice, report: Report): Steps {
  const { file, problems, notices } = report;
  const { learning_rate, gradient_accumulation_steps, warmup_ratio, optim } = recipe;
  const { rateFactor } = optimizerNamed(optim);
  if (learning_rate === null && rateFactor === null)
    problems.push(
      `${file}: learning_rate is missing: with optim ${optim} no rate suits every model. Try several, for example 0.01, 0.1 and 1`,
    );
  const own = tuner.defaults?.find(({ where }) => where?.fits(tunerConfig) ?? true);
  if (learning_rate !== null || own === undefined)
    return {
      learning_rate: learning_rate ?? commonSteps.learning_rate,
      gradient_accumulation_steps: gradient_accumulation_steps ?? commonSteps.gradient_accumulation_steps,
      warmup_ratio: warmup_ratio ?? commonSteps.warmup_ratio,
    };
  const isPacked = objective?.packs ?? (recipe.packing || recipe.neat_packing); // then a batch holds many rows as it is
  const accumulation = isPacked ? 1 : Math.max(1, Math.floor(own.rowsPerStep / recipe.per_device_train_batch_size));
  const warmup = recipe.warmup_steps > 0 || !schedules[recipe.lr_scheduler_type].hasWarmup ? 0 : own.warmup_ratio;
  const steps = {
    learning_rate: Number((own.learning_rate * (rateFactor ?? 1) * (objective?.rateFactor ?? 1)).toPrecision(6)),
    gradient_accumulation_steps: gradient_accumulation_steps ?? accumulation,
    warmup_ratio: warmup_ratio ?? warmup,
  };
  const beside = [
    ...(gradient_accumulation_steps === null ? [`gradient_accumulation_steps ${accumulation}`] : []),
    ...(warmup_ratio === null && warmup > 0 ? [`warmup_ratio ${warmup}`] : []),
  ];
  const ofOptim = rateFactor === null || rateFactor === 1 ? "" : `, ${rateFactor} times AdamW's for optim ${optim},`;
  const ofStage =
    objective?.rateFactor === undefined ? "" : `, ${objective.rateFactor} times that of sft for stage ${objective.name},`;
  notices.push(
    `${file}: no learning_rate is set: ${tuner.name} takes ${steps.learning_rate.toExponential()}${ofOptim}${ofStage}${beside.length > 0 ? ` with ${beside.join(", ")}` : ""} ` +
      `(LLaMA-Factory: ${commonSteps.learning_rate.toExponential()}; docs/defaults.md has the reasons)`,
  );
  return steps;
}

/** What settings say about each other. Returns those whose default depends on others. */
function relate(
  recipe: Omit<CommonSettings, keyof Steps> & Steps,
  given: Given,
  report: Report,
): Pick<Recipe, "eval_strategy" | "eval_steps" | "packing" | "neat_packing" | "report_to"> {
  const { file, problems, notices } = report;
  const defaults = {
    ...RecipeKeys.partial({ model_name_or_path: true, dataset: true, output_dir: true }).parse({}),
    ...commonSteps,
  };
  const refuse = (key: string, message: string) => problems.push(`${given.get(key)?.where ?? file}: ${message}`);
  const notUsed = (key: keyof typeof RecipeKeys.shape, reason: string) => {
    const setting = given.get(key);
    if (setting && setting.value !== defaults[key]) notices.push(`${setting.where}: ${key} is not used: ${reason}`);
  };

  if (recipe.val_size > 0 && recipe.eval_dataset) {
    refuse("val_size", "val_size and eval_dataset both say what to hold out; remove one");
  }
  if (recipe.stages !== null) refuse("stages", "stages: a pipeline of several runs, and one is wanted here");
  if (recipe.dataset_dir.startsWith("REMOTE:"))
    refuse("dataset_dir", "dataset_dir: a dataset_info.json on the hub is not read; fetch it, and write its folder");
  if (!recipe.create_new_adapter)
    refuseSeveralAdapters(
      given,
      problems,
      "set create_new_adapter: true to train a new one over all of them, or name the last alone",
    );
  if (recipe.adapter_name_or_path === null) notUsed("create_new_adapter", "adapter_name_or_path names no old one");
  if (recipe.train_on_prompt && recipe.mask_history) {
    refuse("mask_history", "mask_history counts only the last answer in the loss, train_on_prompt everything; remove one");
  }
  checkMix(recipe, refuse, notUsed);
  const share = recipe.weight_decay * recipe.learning_rate;
  if (share >= 1)
    refuse(
      "weight_decay",
      `weight_decay × learning_rate is ${Number(share.toPrecision(3))}: a step would take away the whole of each weight`,
    );
  if (recipe.resume_from_checkpoint && recipe.overwrite_output_dir)
    notUsed("overwrite_output_dir", "resume_from_checkpoint goes on there");

  const heldOut = recipe.val_size > 0 || recipe.eval_dataset !== null;
  const evalStrategy = recipe.eval_strategy ?? (heldOut ? (recipe.eval_steps ? "steps" : "epoch") : "no");
  if (evalStrategy !== "no" && !heldOut) {
    refuse("eval_strategy", `eval_strategy: ${evalStrategy} needs held-out data; set val_size or eval_dataset`);
  }
  if (!heldOut)
    for (const key of ["do_eval", "do_predict"] as const)
      if (recipe[key]) refuse(key, `${key} needs held-out data; set val_size or eval_dataset`);
  if (recipe.do_predict && recipe.train_on_prompt)
    refuse(
      "do_predict",
      "do_predict and train_on_prompt: rows that are learned whole do not tell where an answer begins; remove one",
    );
  if (!recipe.do_train && !recipe.do_eval && !recipe.do_predict)
    refuse("do_train", "do_train is false, and neither do_eval nor do_predict is true: there is nothing to do");
  if (recipe.predict_with_generate && !recipe.do_predict) notUsed("predict_with_generate", "do_predict asks for answers");
  if (evalStrategy === "no" && !recipe.do_eval && !recipe.do_predict)
    for (const key of ["val_size", "eval_dataset"] as const)
      if (recipe[key])
        notices.push(`${given.get(key)!.where}: ${key}: these rows are held out, and never evaluated: eval_strategy is no`);
  if (evalStrategy === "no")
    for (const key of ["load_best_model_at_end", "early_stopping_steps"] as const)
      if (recipe[key])
        refuse(key, `${key} needs evaluations to compare: ${heldOut ? "eval_strategy is no" : "set val_size or eval_dataset"}`);
  if (recipe.save_strategy === "best" && evalStrategy === "no")
    refuse("save_strategy", "save_strategy: best needs evaluations to compare; set val_size or eval_dataset, and eval_strategy");
  if (recipe.early_stopping_steps === null) notUsed("early_stopping_threshold", "early_stopping_steps is not set");
  if (recipe.early_stopping_steps !== null && !recipe.load_best_model_at_end && evalStrategy !== "no")
    notices.push(
      `${given.get("early_stopping_steps")!.where}: early_stopping_steps: the weights of the last step are the result; load_best_model_at_end=true saves the best`,
    );
  if (evalStrategy !== "steps") notUsed("eval_steps", heldOut ? `eval_strategy is ${evalStrategy}` : "there is no held-out data");
  if (recipe.save_strategy !== "steps") notUsed("save_steps", `save_strategy is ${recipe.save_strategy}`);
  if (recipe.max_steps > 0) notUsed("num_train_epochs", "max_steps decides");
  if (recipe.warmup_steps > 0) notUsed("warmup_ratio", "warmup_steps decides");
  const schedule: Schedule = schedules[recipe.lr_scheduler_type];
  const ofSchedule = checkNested("lr_scheduler_kwargs", "lr_scheduler_type", schedule.settings, recipe, given, report);
  const flaw = ofSchedule && schedule.check?.(ofSchedule, recipe.learning_rate);
  if (flaw !== undefined) problems.push(`${nestedWhere("lr_scheduler_kwargs", "lr_scheduler_type", given, file)}: ${flaw}`);
  const optimizer = optimizerNamed(recipe.optim);
  checkNested("optim_args", "optim", optimizer.args, recipe, given, report);
  for (const key of optimizerKeys) if (!optimizer.reads.includes(key)) notUsed(key, `optim ${recipe.optim} has no such setting`);
  if (!schedules[recipe.lr_scheduler_type].hasWarmup) {
    const reason = `lr_scheduler_type ${recipe.lr_scheduler_type} has no warm-up, constant_with_warmup has`;
    if (recipe.warmup_steps > 0) notUsed("warmup_steps", reason);
    else if (recipe.warmup_ratio > 0) notUsed("warmup_ratio", reason);
  }
  const packing = recipe.packing || recipe.neat_packing;
  const report_to = reportersOf(recipe.report_to, given, report);
  if (report_to.length === 0) notUsed("logging_dir", "it is TensorBoard's, and report_to does not name that");
  return {
    eval_strategy: evalStrategy,
    eval_steps: recipe.eval_steps ?? recipe.logging_steps,
    packing,
    neat_packing: packing,
    report_to,
  };
}

/** Who is told metrics beside the run's own files: TensorBoard, or nobody. Services that attune does not know of are refused, the others named. */
function reportersOf(names: readonly string[], given: Given, { file, problems, notices }: Report): string[] {
  const where = given.get("report_to")?.where ?? file;
  const others: readonly string[] = otherReporters;
  for (const name of names)
    if (others.includes(name))
      notices.push(
        `${where}: report_to: ${name} gets nothing: attune sends metrics to no service. They go to trainer_log.jsonl, trainer_state.json and ` +
          "events.jsonl in output_dir, and to TensorBoard's files by report_to: tensorboard",
      );
    else if (!["none", "all", "tensorboard"].includes(name))
      problems.push(`${where}: report_to: expected none, tensorboard, all or one of ${others.join(", ")}, got ${quote(name)}`);
  return names.includes("tensorboard") || names.includes("all") ? ["tensorboard"] : [];
}

/**
 * Reads settings in a setting, `key`, which are those of what `owner` names. Reports what that does not know, or what is out of range, and then returns
 * undefined.
 */
function checkNested<T>(
  key: "lr_scheduler_kwargs" | "optim_args",
  owner: "lr_scheduler_type" | "optim",
  schema: z.ZodType<T>,
  recipe: Pick<Recipe, typeof key | typeof owner>,
  given: Given,
  { file, problems, notices }: Report,
): T | undefined {
  const where = nestedWhere(key, owner, given, file);
  const known = Object.keys(keySchemas(schema));
  const settings = Object.entries(recipe[key] ?? {}).filter(([, value]) => value !== null);
  const unknown = settings.filter(([name]) => !known.includes(name));
  for (const [name] of unknown) {
    const near = closest(name, known);
    const advice = `${near ? ` Did you mean ${quote(near)}?` : ""} Its settings: ${known.join(", ") || "none"}`;
    problems.push(`${where}: ${recipe[owner]} has no setting ${quote(name)}.${advice}`);
  }
  const values: Given = new Map(settings.map(([name, value]) => [name, { name, value, where }]));
  const checked = validate(schema, values, { file: where, problems, notices });
  return unknown.length === 0 ? checked : undefined;
}

function nestedWhere(key: string, owner: string, given: Given, file: string): string {
  return `${(given.get(key) ?? given.get(owner))?.where ?? file}: ${key}`;
}

/** LLaMA-Factory takes several adapters, by commas; `advice` says what to do here. */
export function refuseSeveralAdapters(given: Given, problems: string[], advice: string): void {
  const { value, where } = given.get("adapter_name_or_path") ?? {};
  if (typeof value === "string" && value.includes(","))
    problems.push(`${where}: adapter_name_or_path: one adapter, not several: ${advice}`);
}

/** Checks how datasets are mixed. */
function checkMix(
  { dataset, mix_strategy, interleave_probs: probs }: Pick<Recipe, "dataset" | "mix_strategy" | "interleave_probs">,
  refuse: (key: string, message: string) => void,
  notUsed: (key: "mix_strategy", reason: string) => void,
): void {
  if (dataset.length === 1) notUsed("mix_strategy", "there is one dataset");
  if (probs === null) return;
  const sum = probs.reduce((total, share) => total + share, 0);
  if (mix_strategy === "concat")
    refuse("interleave_probs", "interleave_probs needs mix_strategy: interleave_under, interleave_over or interleave_once");
  else if (probs.length !== dataset.length)
    refuse(
      "interleave_probs",
      `interleave_probs has ${probs.length} numbers, and dataset names ${dataset.length}: write one for each`,
    );
  else if (!probs.every((share) => share > 0) || Math.abs(sum - 1) > 1e-8)
    refuse("interleave_probs", `interleave_probs have to be above 0 and sum to 1; their sum is ${Number(sum.toPrecision(9))}`);
}

/** Whether a setting takes free text or a list. */
function takes(type: "string" | "array", schema: KeySchema): boolean {
  const isOpen = schema.enum === undefined && schema.const === undefined;
  return (schema.type === type && isOpen) || (schema.anyOf?.some((choice) => takes(type, choice)) ?? false);
}

/** The names that a setting chooses from. */
function choicesOf(schema: KeySchema): string[] {
  const own = (schema.enum ?? []).filter((choice) => typeof choice === "string");
  return [...own, ...(schema.anyOf ?? []).flatMap(choicesOf)];
}

/** What to write instead, where it is easy to tell. */
function hint(value: unknown, schema: KeySchema): string {
  if (typeof value === "string") {
    const number = value.replaceAll(/[_\s]/g, "").replace(/^\+/, "");
    const isNumber = /^-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(number);
    if (isNumber && !takes("string", schema))
      return number === value ? `: write it without quotes, ${value}` : `: write ${number}`;
    if (/^(yes|on|y)$/i.test(value)) return ": write true";
    if (/^(no|off|n)$/i.test(value)) return ": write false";
    const near = closest(value, choicesOf(schema));
    if (near !== undefined) return `. Did you mean ${quote(near)}?`;
  } else if ((typeof value === "number" || typeof value === "boolean") && takes("string", schema)) {
    return `: put it in quotes, "${value}"`;
  }
  return "";
}

function snakeCase(key: string): string {
  return key.replaceAll("-", "_");
}

function show(value: unknown): string {
  if (Array.isArray(value)) return value.length === 0 ? "an empty list" : "a list";
  if (typeof value === "object" && value !== null) return "a mapping";
  return typeof value === "string" ? quote(value) : String(value);
}

/** In quotes, control characters escaped, cut where long. */
function quote(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 79)}…` : text);
}
