import { z } from "zod";
import { bleu4, editSimilarity, loadJieba, rouge } from "../text/text-scores.js";
import { compileSchema } from "./json-schema.js";
import { byRule, defineKind } from "./kind.js";
import type { RewardSample } from "./reward.js";
import { jsonOf, parseTemplate, rowsAnswer } from "./template.js";

/** A setting that `parse` takes; what it throws is what is wrong with it. */
export function checked<T extends z.ZodType>(schema: T, parse: (value: z.output<T>) => unknown): T {
  return schema.superRefine((value, context) => {
    try {
      parse(value);
    } catch (error) {
      context.addIssue({ code: "custom", message: error instanceof Error ? error.message : String(error) });
    }
  });
}

export const templateText = checked(z.string().min(1), parseTemplate);

const reference = templateText
  .default(rowsAnswer)
  .describe("what the answer is held against: text, in which `{{ item.column }}` stands for a column of the row");
const ignoreCase = z.boolean().default(false).describe("small letters are as good as capitals");

const folded = (text: string, isFolded: boolean) => (isFolded ? text.toLowerCase() : text);

/** 1 where the answer matches, else 0. */
export const regex = defineKind({
  type: "regex",
  summary: "1 if a regular expression matches somewhere in the answer, else 0",
  config: checked(
    z.strictObject({
      pattern: z.string().min(1).describe("JavaScript's syntax, with Unicode; ^ and $ stand for both ends of the answer"),
      flags: z
        .string()
        .regex(/^[ims]*$/, "expected of i (any case), m (^ and $ at lines) and s (. matches line breaks)")
        .default("")
        .describe("i: any case; m: ^ and $ at every line; s: . matches line breaks too"),
    }),
    ({ pattern, flags }) => new RegExp(pattern, `${flags}u`),
  ),
  async open({ pattern, flags }, { name }) {
    const expression = new RegExp(pattern, `${flags}u`);
    return byRule(name, ({ answer }) => (expression.test(answer) ? 1 : 0));
  },
});

/** 1 where the answer is the reference, else 0; blanks at both ends do not count. */
export const exactMatch = defineKind({
  type: "exact_match",
  summary: "1 if the answer is the reference, but for blanks at both ends, else 0",
  config: z.strictObject({ reference, ignore_case: ignoreCase }),
  columns: ({ reference }) => parseTemplate(reference).columns,
  async open({ reference, ignore_case }, { name }) {
    const template = parseTemplate(reference);
    return byRule(name, (sample) => {
      const wanted = template.render(sample);
      if (wanted === null) return null;
      return folded(sample.answer.trim(), ignore_case) === folded(wanted.trim(), ignore_case) ? 1 : 0;
    });
  },
});

/** The share of some texts that stand in the answer. */
export const contains = defineKind({
  type: "contains",
  summary: "the share of some texts that stand in the answer: 1 if all do",
  config: z.strictObject({
    texts: z.array(templateText).min(1).default([rowsAnswer]).describe("what is looked for, each like `reference` elsewhere"),
    ignore_case: ignoreCase,
  }),
  columns: ({ texts }) => texts.flatMap((text) => parseTemplate(text).columns),
  async open({ texts, ignore_case }, { name }) {
    const templates = texts.map(parseTemplate);
    return byRule(name, (sample) => {
      const wanted = templates.map((template) => template.render(sample));
      if (wanted.includes(null)) return null;
      const answer = folded(sample.answer, ignore_case);
      return wanted.filter((text) => answer.includes(folded(text!, ignore_case))).length / wanted.length;
    });
  },
});

/** 1 where the answer is JSON, and valid under a schema; else 0. */
export const json = defineKind({
  type: "json",
  summary: "1 if the answer is JSON, and valid under a schema where one is given, else 0",
  config: z.strictObject({
    schema: checked(z.record(z.string(), z.unknown()), compileSchema)
      .nullable()
      .default(null)
      .describe("JSON Schema, draft 2020-12 or, where `$schema` says so, draft-07; `format` says nothing of a value"),
  }),
  async open({ schema }, { name }) {
    const isValid = schema === null ? () => true : compileSchema(schema);
    return byRule(name, ({ answer }) => {
      const value = jsonOf(answer);
      return value !== undefined && isValid(value) ? 1 : 0;
    });
  },
});

const units = {
  tokens: ({ answerIds, isFinished }: RewardSample) => answerIds.length - (isFinished ? 1 : 0),
  words: ({ answer }: RewardSample) => answer.split(/\s+/u).filter((word) => word !== "").length,
  characters: ({ answer }: RewardSample) => [...answer].length,
};

/** By the answer's length n: 1 within bounds and 0 outside, or 1 − |n − target| / target and never below 0. */
export const length = defineKind({
  type: "length",
  summary: "by the answer's length: 1 within bounds and 0 outside, or the nearer to a target the more",
  config: z
    .strictObject({
      unit: z
        .enum(["tokens", "words", "characters"])
        .default("tokens")
        .describe("tokens are counted without the one that ends the answer"),
      min: z.int().min(0).nullable().default(null).describe("fewest"),
      max: z.int().min(0).nullable().default(null).describe("most"),
      target: z
        .int()
        .min(1)
        .nullable()
        .default(null)
        .describe("in place of bounds: 1 there, down to 0 at nothing and at twice as much"),
    })
    .refine(
      ({ min, max, target }) => (target === null) !== (min === null && max === null),
      "expected target, or min and max, or one of them",
    )
    .refine(({ min, max }) => min === null || max === null || min <= max, "min is above max: no answer has that length"),
  async open({ unit, min, max, target }, { name }) {
    const lengthOf = units[unit];
    return byRule(name, (sample) => {
      const n = lengthOf(sample);
      if (target !== null) return Math.max(0, 1 - Math.abs(n - target) / target);
      return n >= (min ?? 0) && n <= (max ?? Number.POSITIVE_INFINITY) ? 1 : 0;
    });
  },
});

/**
 * 1 where the answer is made of tagged sections: each once, in order, and nothing but blanks between them. Where `rest` is true, text may follow the last.
 * Source: DeepSeek-R1 (arXiv:2501.12948), format rewards. `tags: [think]` with `rest: true` is TRL 1.16's think_format_reward, but that a second </think>
 * is no format either.
 */
export const format = defineKind({
  type: "format",
  summary: "1 if the answer is `<think>…</think><answer>…</answer>` or has other tags in this way, else 0",
  config: z.strictObject({
    tags: z
      .array(z.string().regex(/^[\p{L}_][\p{L}\p{N}_-]*$/u, "expected the name of a tag, without brackets"))
      .min(1)
      .default(["think", "answer"])
      .describe("the sections, each once and in this order, with nothing but blanks between them"),
    rest: z.boolean().default(false).describe("text may follow the last section"),
  }),
  async open({ tags, rest }, { name }) {
    return byRule(name, ({ answer }) => (isFormatted(answer, tags, rest) ? 1 : 0));
  },
});

function isFormatted(answer: string, tags: readonly string[], mayGoOn: boolean): boolean {
  let left = answer.trimStart();
  for (const tag of tags) {
    const [open, close] = [`<${tag}>`, `</${tag}>`];
    const end = left.indexOf(close);
    if (!left.startsWith(open) || end < 0 || left.indexOf(open, 1) >= 0 || left.indexOf(close, end + 1) >= 0) return false;
    left = left.slice(end + close.length).trimStart();
  }
  return mayGoOn || left === "";
}

const metrics = ["rouge-1", "rouge-2", "rouge-l", "bleu-4", "edit"] as const;

/** How near the answer comes to the reference, from 0 to 1. */
export const similarity = defineKind({
  type: "similarity",
  summary: "how near the answer comes to the reference, from 0 to 1",
  config: z.strictObject({
    metric: z
      .enum(metrics)
      .default("rouge-l")
      .describe(
        "ROUGE over jieba's words and BLEU over characters, as attune and LLaMA-Factory evaluate (a hundredth of theirs); edit: 1 − edits / length of the longer text",
      ),
    reference,
  }),
  columns: ({ reference }) => parseTemplate(reference).columns,
  async open({ metric, reference }, { name }) {
    const measure = await similarityOf(metric);
    const template = parseTemplate(reference);
    return byRule(name, (sample) => {
      const wanted = template.render(sample);
      return wanted === null ? null : measure(sample.answer, wanted);
    });
  },
});

async function similarityOf(metric: (typeof metrics)[number]): Promise<(answer: string, wanted: string) => number> {
  if (metric === "edit") return editSimilarity;
  if (metric === "bleu-4") return bleu4;
  const cut = await loadJieba();
  const kind = metric === "rouge-l" ? "l" : Number(metric.slice(-1));
  return (answer, wanted) => rouge(answer, wanted, kind, cut);
}

/** 1 where the answer's number is the reference's, else 0; null where the reference has none. */
export const numeric = defineKind({
  type: "numeric",
  summary: "1 if the answer's number is the reference's, else 0",
  config: z.strictObject({
    reference,
    tolerance: z
      .number()
      .min(0)
      .max(1)
      .default(1e-6)
      .describe("how far apart they may be, as a share of the reference; below 1 as it is"),
  }),
  columns: ({ reference }) => parseTemplate(reference).columns,
  async open({ reference, tolerance }, { name }) {
    const template = parseTemplate(reference);
    return byRule(name, (sample) => {
      const text = template.render(sample);
      const wanted = text === null ? null : numberIn(text);
      if (wanted === null) return null;
      const given = numberIn(sample.answer);
      return given !== null && Math.abs(given - wanted) <= tolerance * Math.max(1, Math.abs(wanted)) ? 1 : 0;
    });
  },
});

const numbers =
  /(?<![\p{L}\p{N}_.])[-+−]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s*\/\s*(\d+(?:\.\d+)?))?/gu;

/**
 * The number that a text ends up with: the one in its last \boxed{…}, or else behind its last `####` (GSM8K), or else its last one. Thousands may have
 * commas; a/b and \frac{a}{b} are fractions; signs of money and of per cent are passed over.
 */
export function numberIn(source: string): number | null {
  const text = source.replaceAll(/\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}/g, "$1/$2");
  const boxed = text.lastIndexOf("\\boxed{");
  const marked = text.lastIndexOf("####");
  const from = boxed >= 0 ? boxed + "\\boxed{".length : marked >= 0 ? marked : 0;
  const to = boxed >= 0 ? text.indexOf("}", from) : text.length;
  const last = [...text.slice(from, to < 0 ? text.length : to).matchAll(numbers)].at(-1);
  if (last === undefined) return null;
  const [numerator] = last[0].split("/");
  const value = Number(numerator!.replaceAll(/[,\s]/g, "").replace("−", "-")) / Number(last[1] ?? 1);
  return Number.isFinite(value) ? value : null;
}
