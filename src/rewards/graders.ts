import { z } from "zod";
import { bleu4, indelSimilarity, loadJieba, rouge } from "../text/text-scores.js";
import { parseFormula } from "./formula.js";
import { byRule, defineKind, type Rule } from "./kind.js";
import { checked, templateText } from "./rules.js";
import { parseTemplate } from "./template.js";

/**
 * OpenAI's graders, under the keys that they have there: a text that is judged, `input`, and one that it is held against, `reference`, both templates.
 * Source: OpenAI, API reference, "Graders", and the guide of the same name.
 */

const texts = {
  input: templateText.describe("the text that is judged, such as `{{ sample.output_text }}`"),
  reference: templateText.describe("what it is held against, such as `{{ item.answer }}`"),
};

const StringCheck = z.strictObject({
  ...texts,
  operation: z
    .enum(["eq", "ne", "like", "ilike"])
    .describe("eq: the same; ne: another; like: the reference stands in it; ilike: so, in any case"),
});
type StringCheck = z.output<typeof StringCheck>;

const isLike: Readonly<Record<StringCheck["operation"], (input: string, reference: string) => boolean>> = {
  eq: (input, reference) => input === reference,
  ne: (input, reference) => input !== reference,
  like: (input, reference) => input.includes(reference),
  ilike: (input, reference) => input.toLowerCase().includes(reference.toLowerCase()),
};

/** 1 where the comparison holds, else 0. */
export const stringCheck = defineKind<StringCheck>({
  type: "string_check",
  summary: "OpenAI's grader: 1 if a comparison of two texts holds, else 0",
  config: StringCheck,
  columns: columnsOf,
  open: async (config, { name }) => byRule(name, compared(config, isLike[config.operation])),
});

const refusedMetrics: Readonly<Record<string, string>> = {
  cosine: "it needs a model of embeddings; take fuzzy_match or rouge_l",
  meteor: "it needs a dictionary of synonyms; take rouge_l",
  gleu: "take bleu or rouge_2",
};

const TextSimilarity = z.strictObject({
  ...texts,
  evaluation_metric: checked(z.string(), (metric) => {
    if (Object.hasOwn(refusedMetrics, metric)) throw new Error(`${metric} is not there: ${refusedMetrics[metric]}`);
    if (!/^(fuzzy_match|bleu|rouge_[1-5l])$/.test(metric))
      throw new Error(`expected one of fuzzy_match, bleu, rouge_1 to rouge_5, rouge_l, got ${JSON.stringify(metric)}`);
  }).describe(
    "fuzzy_match: 2 · longest common subsequence of characters / length of both (rapidfuzz's ratio); rouge_1 to rouge_5 and rouge_l over jieba's words, bleu over characters, as attune evaluates",
  ),
});
type TextSimilarity = z.output<typeof TextSimilarity>;

/** How near two texts are, from 0 to 1. */
export const textSimilarity = defineKind<TextSimilarity>({
  type: "text_similarity",
  summary: "OpenAI's grader: how near two texts are, from 0 to 1",
  config: TextSimilarity,
  columns: columnsOf,
  open: async (config, { name }) => byRule(name, compared(config, await measureOf(config))),
});

async function measureOf({ evaluation_metric: metric }: TextSimilarity): Promise<(input: string, reference: string) => number> {
  if (metric === "fuzzy_match") return indelSimilarity;
  if (metric === "bleu") return bleu4;
  const cut = await loadJieba();
  const kind = metric.slice("rouge_".length);
  return (input, reference) => rouge(input, reference, kind === "l" ? "l" : Number(kind), cut);
}

interface Comparison {
  readonly input: string;
  readonly reference: string;
}

function columnsOf({ input, reference }: Comparison): readonly string[] {
  return [input, reference].flatMap((text) => parseTemplate(text).columns);
}

function compared(config: Comparison, compare: (input: string, reference: string) => number | boolean): Rule {
  const [input, reference] = [config.input, config.reference].map(parseTemplate);
  return (sample) => {
    const [given, wanted] = [input!.render(sample), reference!.render(sample)];
    return given === null || wanted === null ? null : Number(compare(given, wanted));
  };
}

/** Graders that run what attune does not run, each with what to do. */
export const refusedGraders: Readonly<Record<string, string>> = {
  python: "attune runs no Python; write the function in JavaScript, in a file, and name it by type: module",
  score_model:
    "it asks a model of OpenAI's; let a service of yours ask one and name it by type: api, or train a reward model (stage rm)",
  label_model:
    "it asks a model of OpenAI's; let a service of yours ask one and name it by type: api, or train a reward model (stage rm)",
};

const named = { name: z.string().optional(), pass_threshold: z.number().optional() };
const Grader = z.discriminatedUnion(
  "type",
  [
    z.strictObject({ ...StringCheck.shape, ...named, type: z.literal("string_check") }),
    z.strictObject({ ...TextSimilarity.shape, ...named, type: z.literal("text_similarity") }),
  ],
  {
    error: ({ input }) => {
      const type = String((input as { type?: unknown } | null)?.type);
      if (Object.hasOwn(refusedGraders, type)) return `${type} is not there: ${refusedGraders[type]}`;
      return `expected a grader of type string_check or text_similarity, got ${JSON.stringify(type.slice(0, 60))}`;
    },
  },
);
type Grader = z.output<typeof Grader>;

const Multi = z
  .strictObject({
    graders: z
      .union([z.record(z.string(), Grader), z.array(Grader)])
      .describe("graders by name, or a list of graders that have names"),
    calculate_output: checked(z.string(), parseFormula).describe(
      "a formula of their names: + - * / ^, parentheses, min, max, abs, floor, ceil, exp, sqrt, log",
    ),
  })
  .superRefine((multi, context) => {
    const graders = gradersOf(multi);
    const say = (message: string) => context.addIssue({ code: "custom", message });
    if (graders.size === 0) say("there are no graders");
    if (graders.size < Object.keys(multi.graders).length) say("two graders have the same name, or none");
    for (const name of formulaNames(multi.calculate_output))
      if (!graders.has(name)) say(`calculate_output names ${name}, and the graders are ${[...graders.keys()].join(", ")}`);
  });
type Multi = z.output<typeof Multi>;

function gradersOf({ graders }: Pick<Multi, "graders">): Map<string, Grader> {
  return new Map(Array.isArray(graders) ? graders.map((grader) => [grader.name ?? "", grader]) : Object.entries(graders));
}

function formulaNames(source: string): readonly string[] {
  try {
    return parseFormula(source).names;
  } catch {
    return []; // told where it is checked
  }
}

/** A formula of what several graders say; null where one of them has nothing to say. */
export const multi = defineKind({
  type: "multi",
  summary: "OpenAI's grader: a formula of what other graders say",
  config: Multi,
  columns: ({ graders }) => Object.values(graders).flatMap(columnsOf),
  async open(config, { name }) {
    const formula = parseFormula(config.calculate_output);
    const rules = await Promise.all(
      [...gradersOf(config)].map(async ([part, grader]): Promise<[string, Rule]> => {
        const compare = grader.type === "string_check" ? isLike[grader.operation] : await measureOf(grader);
        return [part, compared(grader, compare)];
      }),
    );
    return byRule(name, (sample) => {
      const said = rules.map(([part, rule]) => [part, rule(sample)] as const);
      return said.some(([, score]) => score === null) ? null : formula.value(Object.fromEntries(said) as Record<string, number>);
    });
  },
});
