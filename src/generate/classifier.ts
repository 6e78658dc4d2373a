import { Rng } from "../core/rng.js";
import { scope } from "../core/tensor.js";
import type { ComputeType } from "../engine/kernels.js";
import { fastestCompute, loadEngine } from "../engine/load.js";
import { ModelError } from "../errors.js";
import { resolveModel } from "../io/resolve.js";
import { classesOf, classifierConfig, readClasses, type Scoring, scoringOf } from "../models/classes.js";
import { loadModel } from "../models/load.js";
import { packSequences } from "../models/token-batch.js";
import { loadTokenizer } from "../text/load-tokenizer.js";
import type { Tokenizer } from "../text/tokenizer/tokenizer.js";
import { tuners } from "../tuners/index.js";
import { SharedBase } from "../tuners/shared-base.js";
import { openAdapter } from "../tuners/tuned-files.js";
import { requireFinite } from "./sampling.js";

/** Which classifier, and how it is loaded. */
export interface ClassifierOptions {
  /** A classifier, or the base of the adapter: a folder, a GGUF file, or a repository name of the hub. */
  readonly model: string;
  /** Folder of an adapter that was trained to classify. */
  readonly adapter?: string | undefined;
  /** Default: the fastest that the machine has in hardware. */
  readonly compute?: ComputeType;
  /** Called with what the user should know. */
  readonly onNotice?: (message: string) => void;
  /** Called while a model is downloaded. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  readonly signal?: AbortSignal;
}

/** A text's class and scores, as transformers' text-classification pipeline computes them. */
export interface Classification {
  /** The class with the largest score. */
  readonly label: string;
  /**
   * The score of every class, in the order of the model's outputs. They are probabilities that sum to 1; where a text may have several classes, or there
   * is but one, each is the probability of that class alone; a regression's are its numbers as they are.
   */
  readonly probabilities: Readonly<Record<string, number>>;
}

const textsAtOnce = 16;

/** A loaded model that tells which class a text belongs to. Texts are tokenized as in its training. */
export class Classifier {
  readonly classes: readonly string[];
  readonly #base: SharedBase;
  readonly #tokenizer: Tokenizer;
  readonly #scoring: Scoring;

  private constructor(base: SharedBase, tokenizer: Tokenizer, classes: readonly string[], scoring: Scoring) {
    this.classes = classes;
    this.#scoring = scoring;
    this.#base = base;
    this.#tokenizer = tokenizer;
  }

  /** Loads a classifier, or a base and the adapter that makes it one. Throws ModelError, also if it is none. */
  static async open({ model: name, adapter, ...options }: ClassifierOptions): Promise<Classifier> {
    const { onNotice = () => {}, onProgress = () => {} } = options;
    const signal = options.signal ?? new AbortController().signal;
    const resolved = await resolveModel(name, { onNotice, onProgress, signal });
    const opened = adapter === undefined ? null : await openAdapter(adapter, tuners);
    const own = classesOf(resolved.config);
    const told = adapter === undefined ? null : await readClasses(adapter);
    const classes = own ?? (told && classesOf(told)) ?? (opened && classesOfHead(opened.files.tensors));
    if (classes === null)
      throw new ModelError(
        `${adapter ?? name}: is no classifier. Train one with stage: classification, or talk to it with attune chat`,
      );
    const scoring = scoringOf(own === null ? (told ?? {}) : resolved.config, classes.length);
    const tokenizer = await loadTokenizer(resolved);
    for (const message of tokenizer.notices) onNotice(message);

    const kernels = loadEngine();
    const compute = options.compute ?? fastestCompute(kernels.info());
    const files = own === null ? { ...resolved, config: classifierConfig(resolved.config, classes) } : resolved;
    const model = await loadModel({ kernels, compute }, files, own === null ? new Rng(0) : undefined); // the adapter brings the head
    const base = new SharedBase(model);
    try {
      for (const message of model.notices) onNotice(message);
      if (adapter !== undefined) await base.load("default", adapter);
      return new Classifier(base, tokenizer, classes, scoring);
    } catch (error) {
      base.dispose();
      throw error;
    }
  }

  /** The class of each text. A text longer than the model takes loses its end. Throws ModelError for a text without tokens. */
  async classify(texts: readonly string[]): Promise<Classification[]> {
    const [adapter = null] = this.#base.names;
    const most = this.#base.with(adapter, ({ shape, virtualTokens }) => shape.maxPositions - virtualTokens);
    const found: Classification[] = [];
    for (let from = 0; from < texts.length; from += textsAtOnce) {
      const rows = texts.slice(from, from + textsAtOnce).map((text) => {
        const ids = this.#tokenizer.encodeFramed(text, most);
        if (ids.length === 0) throw new ModelError("an empty text has no class");
        return ids;
      });
      const logits = this.#base.with(adapter, (model) => scope(() => model.classLogits(packSequences(rows))));
      const values = await logits.read();
      logits.dispose();
      const { length } = this.classes;
      for (const i of rows.keys()) found.push(this.#describe(values.subarray(i * length, (i + 1) * length)));
    }
    return found;
  }

  /** Frees the model. Every later call ends with ClosedError. */
  close(): void {
    this.#base.dispose();
  }

  #describe(logits: Float32Array): Classification {
    for (const logit of logits) requireFinite(logit);
    const scores = scored(logits, this.#scoring);
    return {
      label: this.classes[scores.reduce((best, score, i) => (score > scores[best]! ? i : best), 0)]!,
      probabilities: Object.fromEntries(this.classes.map((label, i) => [label, scores[i]!])),
    };
  }
}

function scored(logits: Float32Array, scoring: Scoring): number[] {
  if (scoring === "none") return [...logits];
  if (scoring === "sigmoid") return Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit)));
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const weights = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / total);
}

/** PEFT's adapters do not say how their classes are called: as many as the head has outputs, under transformers' names. */
function classesOfHead(tensors: ReadonlyMap<string, { readonly shape: readonly number[] }>): string[] | null {
  const head = [...tensors].find(([name]) => name === "score.weight" || name === "classifier.weight");
  return head === undefined ? null : Array.from({ length: head[1].shape[0]! }, (_, i) => `LABEL_${i}`);
}
