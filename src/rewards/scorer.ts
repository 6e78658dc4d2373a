import { loadRows } from "../data/dataset.js";
import { type Conversation, conversations } from "../data/formats.js";
import { isPreference, type JudgedAnswer, type Preference, type PreferenceLayout, preferences } from "../data/preferences.js";
import { isRecord, type RowFormat } from "../data/row-format.js";
import type { ComputeType } from "../engine/kernels.js";
import { fastestCompute, loadEngine } from "../engine/load.js";
import { DataError } from "../errors.js";
import { resolveModel } from "../io/resolve.js";
import { loadTokenizer, readChatTemplate } from "../text/load-tokenizer.js";
import { type ChatFormat, renderConversation } from "../text/supervised.js";
import { chooseTemplate } from "../text/templates.js";
import { openScorer, type Scorer, scoreAnswers } from "./reward-model.js";

/** Which reward model, and how it is loaded. */
export interface RewardScorerOptions {
  /** A reward model, or the base of the adapter: a folder, a GGUF file, or a repository name of the hub. */
  readonly model: string;
  /** Folder of an adapter that stage rm or LLaMA-Factory trained. */
  readonly adapter?: string | undefined;
  /** Name of a chat template; default: the adapter's, else the model's own. */
  readonly template?: string | undefined;
  /** Default: the fastest that the machine has in hardware. */
  readonly compute?: ComputeType;
  /** Called with what the user should know. */
  readonly onNotice?: (message: string) => void;
  /** Called while a model is downloaded. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  readonly signal?: AbortSignal;
}

/** The scores of a row's answers: of a pair under `chosen` and `rejected`, of any other answer under `score`. */
export interface ScoredRow {
  readonly where: string;
  readonly scores: Readonly<Partial<Record<"chosen" | "rejected" | "score", number>>>;
}

const rowsAtOnce = 16;

/** A loaded reward model that scores answers in files, rendered and read at the same token as in its training. */
export class RewardScorer {
  readonly #scorer: Scorer;
  readonly #chat: ChatFormat;
  readonly #onNotice: (message: string) => void;
  readonly #signal: AbortSignal;

  private constructor(scorer: Scorer, chat: ChatFormat, onNotice: (message: string) => void, signal: AbortSignal) {
    this.#scorer = scorer;
    this.#chat = chat;
    this.#onNotice = onNotice;
    this.#signal = signal;
  }

  /** Loads a reward model. Throws ModelError, also if it is none. */
  static async open({ model, adapter, template: name, ...options }: RewardScorerOptions): Promise<RewardScorer> {
    const { onNotice = () => {}, onProgress = () => {}, signal = new AbortController().signal } = options;
    const files = await resolveModel(model, { onNotice, onProgress, signal });
    const tokenizer = await loadTokenizer(files);
    const source = adapter === undefined ? undefined : await readChatTemplate(adapter);
    const { template, notices } = chooseTemplate(tokenizer, { name, ...(name === undefined && { source }) });
    for (const message of [...tokenizer.notices, ...notices]) onNotice(message);
    const kernels = loadEngine();
    const compute = options.compute ?? fastestCompute(kernels.info());
    const scorer = await openScorer({ kernels, compute }, files, { adapter: adapter ?? null, notify: onNotice });
    return new RewardScorer(scorer, { tokenizer, template }, onNotice, signal);
  }

  /**
   * The scores of the answers in files or data sets, row by row: pairs in any form that preference stages read, or conversations, of which the last answer
   * counts. Throws DataError for a row that cannot be used, or is longer than the model takes.
   */
  async *score(dataset: readonly string[], datasetDir?: string): AsyncGenerator<ScoredRow> {
    const { rows, notices } = await loadRows({ dataset, ...(datasetDir !== undefined && { datasetDir }) }, answeredRows);
    for (const message of notices) this.#onNotice(message);
    const left = rows.filter(({ answers }) => answers.length === 0);
    if (left.length > 0)
      this.#onNotice(`${left.length} of ${rows.length} rows have nothing to score, the first ${left[0]!.where}`);
    for (let from = 0; from < rows.length; from += rowsAtOnce) {
      const some = rows.slice(from, from + rowsAtOnce).filter(({ answers }) => answers.length > 0);
      const answers = some.flatMap((row) => row.answers.map((answer) => ({ ...answer, where: row.where })));
      const tokens = answers.map(({ where, ...dialogue }) => this.#tokensOf(dialogue, where));
      const scores = await scoreAnswers(
        this.#scorer,
        tokens,
        this.#signal,
        (i, what) => new DataError(`${answers[i]!.where}: ${what}`),
      );
      let at = 0;
      for (const { where, answers: own } of some)
        yield { where, scores: Object.fromEntries(own.map(({ judgement }) => [nameOf(judgement), scores[at++]!])) };
    }
  }

  /** Frees the model. Every later call ends with ClosedError. */
  close(): void {
    this.#scorer.base.dispose();
  }

  #tokensOf(dialogue: Omit<JudgedAnswer, "judgement">, where: string) {
    try {
      const { ids, supervised } = renderConversation(this.#chat, dialogue, { maskHistory: true });
      const begin = supervised.indexOf(1);
      return { prompt: ids.slice(0, begin), answer: ids.slice(begin, supervised.lastIndexOf(1) + 1) };
    } catch (error) {
      if (error instanceof DataError) throw new DataError(`${where}: ${error.message}`, { cause: error });
      throw error;
    }
  }
}

const nameOf = (judgement: JudgedAnswer["judgement"]) =>
  judgement === "chosen" || judgement === "rejected" ? judgement : "score";

/** Rows of judged answers, or conversations, each by what it shows. */
const answeredRows: RowFormat<Preference, { readonly judged: PreferenceLayout | undefined; readonly isJudged: boolean }> = {
  layoutOfEntry(entry, where) {
    const { columns } = entry;
    const isJudged = entry.ranking === true || (isRecord(columns) && "kto_tag" in columns);
    return isJudged ? { judged: preferences.layoutOfEntry(entry, where), isJudged } : undefined;
  },
  read(row, layout, tally) {
    if (layout?.isJudged === true || isPreference(row)) return preferences.read(row, layout?.judged, tally);
    const { where: _, ...dialogue } = conversations.read(row, undefined, tally) as Conversation;
    return { answers: [{ ...dialogue, judgement: "good" }] };
  },
};
