import { loadRows } from "../data/dataset.js";
import type { Example, Row } from "../data/example.js";
import { conversationColumns, questionColumns } from "../data/formats.js";
import { labelledColumns } from "../data/labelled-texts.js";
import type { PairRow, UnpairedRow } from "../data/preference-rows.js";
import { isPair, isPreference } from "../data/preferences.js";
import { byteChat, type PreviewedExample, type PreviewRow, previewRow } from "../data/preview.js";
import type { Fields, RowFormat } from "../data/row-format.js";
import { textColumns } from "../data/texts.js";
import { ConfigError, DataError } from "../errors.js";
import { resolveModel } from "../io/resolve.js";
import { loadTokenizer } from "../text/load-tokenizer.js";
import type { ChatFormat, SupervisionOptions } from "../text/supervised.js";
import { chooseTemplate, type TemplateChoice } from "../text/templates.js";
import { objectives } from "./index.js";
import type { DataSource } from "./objective.js";

export interface PreviewOptions
  extends Pick<TemplateChoice, "toolFormat" | "defaultSystem" | "enableThinking">,
    SupervisionOptions {
  /** Paths of files, or names in dataset_info.json. */
  readonly dataset: readonly string[];
  /** A folder, a GGUF file, or a repository name of the hub, whose tokenizer and chat template to use; default: ChatML, a token a byte. */
  readonly model?: string | undefined;
  readonly revision?: string | undefined;
  /** Name of a chat template; default: the model's own. */
  readonly template?: string | undefined;
  /** What the rows are read for: the name of an objective; default: what their columns show. */
  readonly stage?: string | undefined;
  /** Folder of dataset_info.json. */
  readonly datasetDir: string;
  /** Longest row of training, in tokens: how many are longer is told. */
  readonly cutoffLen: number;
  /** Rows to show. */
  readonly count: number;
  /** Called with what the user should know of the model's tokenizer and template. */
  readonly onNotice?: (message: string) => void;
}

export interface DataPreview {
  readonly stage: string;
  /** At most `count`, of judged answers all of that many rows; a row that cannot be used is not among them, but in a notice. */
  readonly rows: readonly PreviewRow[];
  /** Of all that was read: rows or answers, and their lengths in tokens. */
  readonly examples: number;
  readonly tokens: { readonly p50: number; readonly p95: number; readonly max: number; readonly longer: number };
  /** Tokens that are learned, of all; null where what is learned belongs to whole rows. */
  readonly supervised: { readonly tokens: number; readonly of: number } | null;
  /** How many rows belong to each class, or how many answers were judged so, the most first. */
  readonly labels: readonly (readonly [label: string, rows: number])[];
  /** What training would say of these rows. */
  readonly notices: readonly string[];
}

/** Of a longer data set, the first rows are read. */
export const rowsLookedAt = 5000;

/** What pairs of answers are read for, and answers that are judged each by itself, where nobody says: all stages of such rows read them alike. */
const [stageOfPairs, stageOfJudged] = ["dpo", "kto"];

const noLimit = Number.MAX_SAFE_INTEGER;

/** Reads a data set as training would, to look at it. Throws DataError for data that cannot be read, ConfigError for a name that is wrong. */
export async function previewData(options: PreviewOptions): Promise<DataPreview> {
  const { dataset, datasetDir, count, cutoffLen } = options;
  const notices: string[] = [];
  const chat = await chatFormatOf(options);
  const source: DataSource = {
    files: { datasetDir, onBadRow: "skip", maxSamples: rowsLookedAt },
    tokenize: {
      cutoffLen: noLimit,
      onBadRow: "skip",
      trainOnPrompt: options.trainOnPrompt ?? false,
      maskHistory: options.maskHistory ?? false,
      withoutThoughts: options.enableThinking === false,
    },
    tokenizer: chat.tokenizer,
    chat: () => chat,
    warn: (message) => notices.push(message),
  };
  const stage = options.stage ?? (await stageOf(source, dataset));
  const examples = await examplesFor(stage, source, dataset);
  const lengths = examples.map(({ ids }) => ids.length).sort((a, b) => a - b);
  const at = (share: number) => lengths[Math.max(0, Math.ceil(share * lengths.length) - 1)] ?? 0;
  const total = (numbers: Iterable<number>) => [...numbers].reduce((sum, number) => sum + number, 0);
  const isByToken = examples.some(({ supervised }) => supervised !== undefined);
  const shown = new Set([...new Set(examples.map(({ where }) => where))].slice(0, count));
  return {
    stage,
    rows: examples.filter(({ where }) => shown.has(where)).map((example) => previewRow(example, chat.tokenizer)),
    examples: examples.length,
    tokens: { p50: at(0.5), p95: at(0.95), max: at(1), longer: lengths.filter((length) => length > cutoffLen).length },
    supervised: isByToken
      ? { tokens: total(examples.map(({ supervised }) => total(supervised ?? []))), of: total(lengths) }
      : null,
    labels: counted(examples.flatMap(({ label }) => (label === undefined ? [] : [label]))),
    notices,
  };
}

function counted(labels: readonly string[]): [string, number][] {
  const counts = new Map<string, number>();
  for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].sort(([, a], [, b]) => b - a);
}

async function examplesFor(stage: string, source: DataSource, dataset: readonly string[]): Promise<PreviewedExample[]> {
  const objective = objectives.find(({ name }) => name === stage);
  if (objective === undefined) {
    const known = objectives.map(({ name }) => name).join(", ");
    throw new ConfigError(`--stage: ${JSON.stringify(stage)} is not known; expected one of ${known}`);
  }
  const rows = await objective.read(dataset, source, objective.config.parse({}));
  return rows.flatMap((row) => shownOf(row as Partial<PairRow & UnpairedRow & Example> & Row, stage));
}

/** The texts of a row: one of its own, a prompt with each of its answers, or a prompt alone. */
function shownOf(row: Partial<PairRow & UnpairedRow & Example> & Row, stage: string): PreviewedExample[] {
  const { where, ids, prompt, chosen, rejected, answer, isGood } = row;
  if (ids !== undefined) return [row as Example];
  if (prompt === undefined) throw new ConfigError(`--stage: rows of ${stage} hold no tokens to show`);
  const answered = (answer: Int32Array, label: string): PreviewedExample => {
    const ids = Int32Array.from({ length: prompt.length + answer.length }, (_, t) => prompt[t] ?? answer[t - prompt.length]!);
    return { ids, where, supervised: new Uint8Array(ids.length).fill(1, prompt.length), label };
  };
  if (chosen !== undefined && rejected !== undefined) return [answered(chosen, "chosen"), answered(rejected, "rejected")];
  if (answer !== undefined) return [answered(answer, isGood ? "good" : "bad")];
  return [{ ids: prompt, where }];
}

/** What the first rows that can be read are for. Rows that show nothing are taken for conversations, whose reader says what is missing. */
async function stageOf(source: DataSource, dataset: readonly string[]): Promise<string> {
  try {
    const { rows } = await loadRows({ ...source.files, dataset: dataset.slice(0, 1), maxSamples: 20 }, kinds);
    return rows[0]?.stage ?? "sft";
  } catch (error) {
    if (error instanceof DataError) return "sft";
    throw error;
  }
}

const kinds: RowFormat<{ readonly stage: string; readonly where: string }, { readonly stage: string }> = {
  layoutOfEntry({ ranking, columns }) {
    const isTagged = typeof columns === "object" && columns !== null && "kto_tag" in columns;
    if (isTagged) return { stage: stageOfJudged };
    return ranking === true ? { stage: stageOfPairs } : undefined;
  },
  read: (row, layout) => ({ stage: layout?.stage ?? kindOfRow(row) }),
};

function kindOfRow(row: Fields): string {
  if (isPreference(row)) return isPair(row) ? stageOfPairs : stageOfJudged;
  const isChat = row.findAll([...Object.keys(questionColumns), ...conversationColumns.messages]).length > 0;
  if (isChat) return "sft";
  const isText = row.findAll([...textColumns, ...labelledColumns.text]).length > 0;
  if (isText && row.findAll(["label"]).length > 0) return "classification";
  return isText ? "pt" : "sft";
}

async function chatFormatOf(options: PreviewOptions): Promise<ChatFormat> {
  const { model, revision = "main", template: name, toolFormat, defaultSystem, enableThinking, onNotice = () => {} } = options;
  const tokenizer =
    model === undefined ? byteChat().tokenizer : await loadTokenizer(await resolveModel(model, { revision, onNotice }));
  const { template, notices } = chooseTemplate(tokenizer, { name, toolFormat, defaultSystem, enableThinking });
  for (const notice of notices) onNotice(notice);
  return { tokenizer, template };
}
