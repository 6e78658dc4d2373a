import { z } from "zod";
import { crossEntropy } from "../../core/ops/cross-entropy.js";
import { scope } from "../../core/tensor.js";
import { loadRows, tokenizeRows } from "../../data/dataset.js";
import type { LabelledExample } from "../../data/example.js";
import { labelledTexts } from "../../data/labelled-texts.js";
import { ConfigError, DataError } from "../../errors.js";
import { classesFile, classesOf, classifierConfig, scoringOf } from "../../models/classes.js";
import { packSequences, type TokenBatch } from "../../models/token-batch.js";
import { smoothingKeys } from "../label-smoothing.js";
import { type Batch, defineObjective, type Evaluation, type Task } from "../objective.js";
import { ConfusionMatrix } from "./confusion-matrix.js";

export const ClassificationConfig = z.strictObject({
  ...smoothingKeys,
  labels: z
    .union([z.string(), z.array(z.union([z.string(), z.number()]).transform(String))])
    .nullable()
    .default(null)
    .transform((names) => (typeof names === "string" ? names.split(",") : names)?.map((name) => name.trim()) ?? null)
    .describe("the classes in the order of the model's outputs; not set: those of the data, sorted"),
});
export type ClassificationConfig = z.output<typeof ClassificationConfig>;

export interface ClassificationBatch extends Batch {
  readonly input: TokenBatch;
  /** The class of each row. */
  readonly targets: Int32Array;
}

/**
 * Classification of texts: −Σ log p(class of the row | text). A text is read as transformers' tokenizers write it, without a chat and with control tokens in it as plain text, and its class
 * told from the vector of its last token (decoders) or first (encoders).
 *
 * Source: transformers' *ForSequenceClassification, whose folders and names of weights it shares.
 */
export const classification = defineObjective<LabelledExample, ClassificationConfig>({
  name: "classification",
  summary: "learns to tell which class a text belongs to",
  config: ClassificationConfig,
  usedBy: "classify",

  async read(dataset, { files, tokenize: { cutoffLen, onBadRow = "error" }, tokenizer, warn }) {
    const { rows, notices } = await loadRows({ dataset, ...files }, labelledTexts);
    for (const message of notices) warn(message);
    let cut = 0;
    let withControls = 0;
    const tokenized = await tokenizeRows(rows, onBadRow, ({ text, label, where }): LabelledExample[] => {
      const whole = tokenizer.encodeFramed(text);
      if (whole.length === 0) throw new DataError("the text has no tokens");
      if (tokenizer.split(text).some(({ id }) => id !== undefined)) withControls++;
      if (whole.length > cutoffLen) cut++;
      const ids = whole.length > cutoffLen ? tokenizer.encodeFramed(text, cutoffLen) : whole;
      return [{ ids, label, where, tokens: ids.length }];
    });
    for (const message of tokenized.notices) warn(message);
    if (cut > 0) warn(`${cut} of ${rows.length} rows are longer than cutoff_len = ${cutoffLen} tokens and lose their end.`);
    if (withControls > 0)
      warn(
        `${withControls} of ${rows.length} texts hold control tokens; they are read as plain text, where transformers reads the tokens.`,
      );
    return tokenized.examples;
  },

  task(examples, { labels, label_smoothing_factor }, { base, heldOut, warn }) {
    const own = classesOf(base);
    if (own !== null && scoringOf(base, own.length) !== "softmax")
      throw new ConfigError(
        `stage ${this.name} tells classes apart, of which a text has one; by its config.json the model does not: ${kindOfClassifier(base, own)}. ` +
          "Start from a base without a head, or from a classifier of one class for each text",
      );
    const classes = chooseClasses([...examples, ...heldOut], labels, own);
    tellOfMissing(classes, examples, heldOut, warn);
    return classificationTask(classes, classifierConfig(base, classes), label_smoothing_factor);
  },
});

function kindOfClassifier({ problem_type }: Readonly<Record<string, unknown>>, classes: readonly string[]): string {
  const outputs = `${classes.length} ${classes.length === 1 ? "output" : "outputs"}`;
  return typeof problem_type === "string" ? `problem_type is "${problem_type}", with ${outputs}` : `it has ${outputs}`;
}

/** Those that the recipe names, or the base's own if it is a classifier of them, or those of the data. */
function chooseClasses(
  examples: readonly LabelledExample[],
  named: readonly string[] | null,
  own: readonly string[] | null,
): readonly string[] {
  const found = [...new Set(examples.map(({ label }) => label))].sort(byNumberOrName);
  if (own !== null && named !== null && own.join("\n") !== named.join("\n"))
    throw new ConfigError(`labels: the model is a classifier of ${own.join(", ")}, in this order; leave labels out`);
  const classes = named ?? own ?? found;
  const unknown = examples.find(({ label }) => !classes.includes(label));
  if (unknown !== undefined)
    throw new DataError(
      `${unknown.where}: the label ${JSON.stringify(unknown.label)} is none of ${named === null ? "the model's" : "labels"}: ${classes.join(", ")}`,
    );
  if (new Set(classes).size < classes.length) throw new ConfigError(`labels: ${classes.join(", ")}: a class is named twice`);
  if (classes.length < 2)
    throw new DataError(`every row has the label ${JSON.stringify(classes[0])}: there is nothing to tell apart`);
  return classes;
}

/** Says which classes nothing trains, and which nothing measures. */
function tellOfMissing(
  classes: readonly string[],
  examples: readonly LabelledExample[],
  heldOut: readonly LabelledExample[],
  warn: (message: string) => void,
): void {
  const [trained, measured] = [examples, heldOut].map((rows) => new Set(rows.map(({ label }) => label)));
  const untrained = classes.filter((label) => !trained!.has(label));
  const onlyHeldOut = untrained.filter((label) => measured!.has(label));
  const nowhere = untrained.filter((label) => !measured!.has(label));
  const unmeasured = heldOut.length === 0 ? [] : classes.filter((label) => trained!.has(label) && !measured!.has(label));
  if (onlyHeldOut.length > 0)
    warn(`only held-out rows have ${labelsIn(onlyHeldOut)}: no row that trains does, so the model learns never to answer so`);
  if (nowhere.length > 0) warn(`no row has ${labelsIn(nowhere)}: the model learns never to answer so`);
  if (unmeasured.length > 0) warn(`no held-out row has ${labelsIn(unmeasured)}: evaluation says nothing of it`);
}

const maxShown = 5;

function labelsIn(labels: readonly string[]): string {
  const shown = labels.slice(0, maxShown).map((label) => JSON.stringify(label));
  const more = labels.length > maxShown ? `, … (${labels.length} in all)` : "";
  return `${labels.length === 1 ? "the label" : "the labels"} ${shown.join(", ")}${more}`;
}

/** Numbers by size, before names by their characters. */
function byNumberOrName(a: string, b: string): number {
  const [x, y] = [Number(a), Number(b)].map((n) => (Number.isNaN(n) ? Number.POSITIVE_INFINITY : n)) as [number, number];
  return x !== y ? (x < y ? -1 : 1) : a < b ? -1 : 1;
}

/** The task of telling these classes apart, on the model that `modelConfig` describes. */
export function classificationTask(
  classes: readonly string[],
  modelConfig: Readonly<Record<string, unknown>>,
  smoothing = 0,
): Task<LabelledExample, ClassificationBatch> {
  return {
    modelConfig,
    identity: modelConfig.id2label,
    taskType: "SEQ_CLS",
    files: [classesFile(modelConfig)],

    shorten: (row, tokens) => ({ ...row, ids: row.ids.subarray(0, tokens), tokens }),

    collate(examples) {
      const input = packSequences(examples.map(({ ids }) => ids));
      const targets = Int32Array.from(examples, ({ label }) => classes.indexOf(label));
      return { input, targets, tokens: input.ids.length, counts: { loss: examples.length } };
    },

    terms: (model, { input, targets }) => ({ loss: { sum: crossEntropy(model.classLogits(input), targets, { smoothing }) } }),

    evaluation(): Evaluation<ClassificationBatch> {
      const matrix = new ConfusionMatrix(classes);
      return {
        add(model, { input, targets }) {
          const { logits, loss } = scope(() => {
            const logits = model.classLogits(input);
            return { logits, loss: crossEntropy(logits, targets, { smoothing }) };
          });
          return async () => {
            try {
              const values = await logits.read();
              for (const [row, target] of targets.entries())
                matrix.add(target, indexOfLargest(values.subarray(row * classes.length, (row + 1) * classes.length)));
              return { loss: { sum: await loss.item() } };
            } finally {
              logits.dispose();
              loss.dispose();
            }
          };
        },
        metrics: () => matrix.metrics(),
      };
    },
  };
}

function indexOfLargest(values: Float32Array): number {
  return values.reduce((best, value, i) => (value > values[best]! ? i : best), 0);
}
