import type { z } from "zod";
import { optimizers } from "../optim/optimizers.js";
import { scheduleNames, schedules } from "../optim/schedule.js";
import { aliases } from "./foreign-keys.js";
import {
  axesOf,
  commonSteps,
  expectation,
  type KeySchema,
  keySchemas,
  type Method,
  type Methods,
  recipeGroups,
  recipeJsonSchema,
} from "./schema.js";

/** docs/recipe.md: every setting with what it takes, its default and its meaning, made from the schemas. */
export function recipeDocs(methods: Methods): string {
  const { properties } = recipeJsonSchema(methods);
  const groups = Object.entries(recipeGroups).map(([title, shape]) => {
    const keys = Object.keys(shape).map((key) => [key, properties[key]!] as const);
    const more =
      "learning_rate" in shape ? `\n\n${[stepsIntro, stepsTable(methods), stageFactors(methods), ...choices].join("\n\n")}` : "";
    return `### ${title}\n\n${table(Object.fromEntries(keys))}${more}`;
  });
  /** A setting that several methods share is listed with the first of them, and again with those where its default is another. */
  const ofMethods = (key: string, all: readonly Method[]) => {
    const shown = new Map<string, { owner: string; text: string }>();
    return all.map(({ name, config, narrows, notes, otherNames = {} }) => {
      const keys = Object.entries(config ? keySchemas(config) : {});
      const own = keys.filter(([setting, schema]) => shown.get(setting)?.text !== JSON.stringify(schema));
      const elsewhere = new Map<string, string[]>();
      for (const [setting] of keys.filter((entry) => !own.includes(entry))) {
        const { owner } = shown.get(setting)!;
        elsewhere.set(owner, [...(elsewhere.get(owner) ?? []), code(setting)]);
      }
      const shared = [...elsewhere].map(([owner, settings]) => `${settings.join(", ")} of ${code(owner)}`).join("; ");
      for (const [setting, schema] of keys) shown.set(setting, { owner: name, text: JSON.stringify(schema) });
      const body = [
        shared && `${shared}${own.length > 0 ? ", and:" : "."}`,
        own.length > 0 ? table(Object.fromEntries(own)) : "",
        narrows ? `Of the settings of every recipe it takes otherwise: ${nestedSettings(narrows)}.` : "",
        Object.entries(otherNames)
          .map(([other, setting]) => `${code(other)} is read as ${code(setting)}.`)
          .join(" "),
        notes ?? "",
      ];
      return `### \`${key}: ${name}\`\n\n${body.filter(Boolean).join("\n\n") || "No settings of its own."}`;
    });
  };
  const sections = [
    intro,
    "## Settings",
    ...groups,
    ...Object.entries(axesOf(methods)).flatMap(([key, all]) => ofMethods(key, all)),
    foreignIntro,
    "### Other names",
    rows(
      ["Name", "Is read as"],
      Object.entries(aliases).map(([name, key]) => [code(name), code(key)]),
    ),
  ];
  return `${sections.join("\n\n")}\n`;
}

const intro = `<!-- Made by scripts/make-recipe-docs.mjs from src/recipe/. Change it there. -->

# Recipes

A recipe is a YAML (or JSON) file of settings under LLaMA-Factory's names. Three are enough:

\`\`\`yaml
model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct
dataset: orders.jsonl
output_dir: runs/orders
\`\`\`

\`attune train recipe.yaml\` runs it. Settings on the command line win over the file, as \`learning_rate=1e-4\` or \`--learning-rate 1e-4\`.
Dashes in names are underscores, and \`null\` means not set. A setting that attune does not know is an error that names the line.
Numbers are written as YAML has them: \`1e-4\`, not \`"1e-4"\`; \`1000\`, not \`1_000\`. Paths are relative to the folder where attune is started.`;

const stepsIntro = `\
Where a recipe names no \`learning_rate\`, the method's own is taken, with its rows a step (by accumulation; packed rows are not accumulated) and its warm-up
unless the recipe names these. A recipe that names one gets ${commonSteps.gradient_accumulation_steps} batch a step and a warm-up of \
${commonSteps.warmup_ratio}, as in LLaMA-Factory, unless it says otherwise. Rates are AdamW's.`;

/** What each method takes where a recipe names no learning rate. */
function stepsTable({ tuners }: Methods): string {
  const cells = tuners.flatMap(({ name, defaults = [] }) =>
    defaults.map(({ where, learning_rate, rowsPerStep, warmup_ratio }) => [
      `${code(name)}${where ? `, ${where.words}` : ""}`,
      ...[learning_rate.toExponential(), String(rowsPerStep), String(warmup_ratio)].map(code),
    ]),
  );
  return rows(["Method", "Learning rate", "Rows a step", "Warm-up"], cells);
}

/** Stages that learn with another part of these rates. */
function stageFactors({ objectives }: Methods): string {
  const factors = objectives.flatMap(({ name, rateFactor }) =>
    rateFactor === undefined ? [] : [`${code(name)} by ${rateFactor}`],
  );
  return `Stages multiply such a rate: ${factors.join(", ")}. It is right for learning answers by heart, and too high for learning what is preferred.`;
}

/** The settings of each schedule, and the optimizers. */
const choices = [
  "`lr_scheduler_kwargs` may say, of each `lr_scheduler_type`:",
  rows(
    ["Schedule", "Its settings"],
    scheduleNames.map((name) => [code(name), nestedSettings(schedules[name].settings)]),
  ),
  "Of `optim`, one line has the names of one optimizer; its settings are the `adam_…` that it reads, and what `optim_args` may say. Where a recipe names no " +
    "learning rate, the method's own is multiplied by the factor.",
  rows(
    ["Optimizer", "Its settings", "Factor"],
    optimizers.map(({ names, reads, args, rateFactor }) => [
      names.map(code).join(", "),
      [...reads.map(code), nestedSettings(args)].filter((text) => text !== "none").join(", ") || "none",
      rateFactor === null ? "none holds: name a rate" : String(rateFactor),
    ]),
  ),
];

function nestedSettings(schema: z.ZodType): string {
  const settings = Object.entries(keySchemas(schema)).map(([name, one]) => {
    const initial = "default" in one ? `: ${String(one.default)}` : "";
    return `${code(name)} (${expectation(one)}${initial})`;
  });
  return settings.join(", ") || "none";
}

const foreignIntro = `## Settings of other trainers

Recipes of LLaMA-Factory, axolotl and TRL bring along settings of their own. None is quietly obeyed otherwise than it says: a needless one is explained
by one line when the run starts, one that would change the result is refused. [from-llama-factory.md](from-llama-factory.md) has every one of them.`;

function table(keys: Readonly<Record<string, KeySchema>>): string {
  const defaultOf = (schema: KeySchema) => {
    if (!("default" in schema)) return "needed";
    const value = schema.default;
    if (value === null) return "not set";
    if (typeof value === "object") return Object.keys(value).length === 0 ? "none" : code(JSON.stringify(value));
    return code(typeof value === "number" && value > 0 && value < 1e-3 ? value.toExponential() : String(value));
  };
  const cells = Object.entries(keys).map(([name, schema]) => [
    code(name),
    expectation(schema),
    defaultOf(schema),
    schema.description ?? "",
  ]);
  return rows(["Setting", "Takes", "Default", "Meaning"], cells);
}

/** A table of Markdown. */
export function rows(heading: readonly string[], cells: readonly (readonly string[])[]): string {
  const line = (row: readonly string[]) => `| ${row.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  return [line(heading), line(heading.map(() => "---")), ...cells.map(line)].join("\n");
}

export function code(text: string): string {
  return `\`${text}\``;
}
