import { DataError } from "../errors.js";
import type { Dialogue, Message } from "../text/chat-template.js";
import { type ChatFormat, renderPrompt } from "../text/supervised.js";
import { type DatasetOptions, leftOutNotice, loadRows, tokenizeRows } from "./dataset.js";
import type { Row } from "./example.js";
import {
  type ChatLayout,
  charsIn,
  chatDialogue,
  conversationColumns,
  layoutShown,
  type QuestionLayout,
  questionColumns,
  questionDialogue,
  questionShown,
  refusedColumns,
} from "./formats.js";
import { refuseKeys } from "./messages.js";
import type { BadRow } from "./pieces.js";
import { isPreference, isWholeConversation, preferenceColumns, preferences } from "./preferences.js";
import { checkLength, columnHelp, Fields, isRecord, mostChars, RowFault, type RowFormat, Tally } from "./row-format.js";

/** A prompt as tokens, to be answered by the model itself. */
export interface PromptRow extends Row {
  /** (T) token ids, up to where the answer begins. */
  readonly prompt: Int32Array;
  readonly messages: readonly Message[];
  /** What else the row says, for rewards to read. */
  readonly columns: Readonly<Record<string, unknown>>;
}

/** What a row asks, and all else that it says. */
export interface Prompt extends Dialogue {
  /**
   * The columns that are no part of the prompt, under their own names. The answer that an sft row gives stands under `answer` too, unless the row has such
   * a column; that of a row which says of its answer whether it is good, under `completion`.
   */
  readonly columns: Readonly<Record<string, unknown>>;
  readonly where: string;
}

/** `response` is the column of the answer that is wanted, where there may be one. */
type PromptLayout = ChatLayout | (QuestionLayout & { readonly kind: "alpaca"; readonly response?: string | undefined });

/** Answers that somebody judged are none to be held against: two of them, or one with a tag that says whether it is good. */
type Judged = "pair" | "tag" | undefined;

interface EntryLayout {
  readonly question: PromptLayout | undefined;
  readonly judged: Judged;
}

/**
 * Rows with a prompt, whatever else they hold: TRL's prompts alone, as text or messages; rows of stage sft, whose last answer is not part of the prompt;
 * rows of judged answers, with or without a question of their own, and OpenAI's `input`.
 * Source: TRL 1.16, "Dataset formats and types"; LLaMA-Factory 0.9.5, data/parser.py; OpenAI, "Direct preference optimization".
 */
export const prompts: RowFormat<Prompt, EntryLayout> = {
  layoutOfEntry(entry, where) {
    const columns = isRecord(entry.columns) ? entry.columns : {};
    const isPair = entry.ranking === true || ["chosen", "rejected"].some((key) => typeof columns[key] === "string");
    const judged = isPair ? "pair" : typeof columns.kto_tag === "string" ? "tag" : undefined;
    const question = preferences.layoutOfEntry(entry, where)?.rest;
    return question === undefined && judged === undefined ? undefined : { question, judged };
  },

  read(row, entry, tally) {
    if (entry?.question === undefined) refuseKeys(row, refusedHere, "the row");
    const judged = entry === undefined ? judgedIn(row) : entry.judged;
    const { dialogue, answer } = readQuestion(row, entry?.question, judged, tally);
    checkLength(charsIn(dialogue), mostChars.conversation);
    if (dialogue.messages.length === 0) throw new RowFault("nothing stands before the answer: there is no prompt.");
    if (dialogue.messages.at(-1)?.role === "assistant")
      throw new RowFault("the prompt ends with an assistant's message, where a user's has to stand: there is nothing to answer.");
    const columns = row.takeRest();
    const name = judged === undefined ? "answer" : "completion";
    if (answer !== undefined) {
      const isElsewhere = Object.values(columns).some((value) => wordsIn(value) === answer);
      if (!isElsewhere && columns[name] !== undefined)
        tally.fact(`have a column "${name}", which is what rewards see; the answer in their messages is not used.`);
      if (!isElsewhere || judged === undefined) columns[name] ??= answer;
    }
    return { ...dialogue, columns };
  },
};

/** A weight may be what a reward reads. */
const refusedHere = Object.fromEntries(Object.entries(refusedColumns).filter(([key]) => !key.endsWith("weight")));

function judgedIn(row: Fields): Judged {
  if (!isPreference(row)) return undefined;
  return row.find(preferenceColumns.chosen) === undefined ? "tag" : "pair";
}

interface Question {
  readonly dialogue: Dialogue;
  /** The answer that the row gives to it. */
  readonly answer?: unknown;
}

function readQuestion(row: Fields, given: PromptLayout | undefined, judged: Judged, tally: Tally): Question {
  const input = row.peek("input");
  if (given === undefined && isRecord(input) && Array.isArray(input.messages)) {
    row.take("input");
    return readQuestion(row.within(input, "keys of input"), undefined, "pair", tally);
  }
  const sides = [preferenceColumns.chosen, preferenceColumns.rejected].map((known) => row.peek(row.find(known) ?? ""));
  if (given === undefined && judged === "pair" && sides.every(isWholeConversation)) return { dialogue: beforeAnswers(row) };
  const layout = given ?? layoutShown(row) ?? promptAlone(row);
  if (layout === undefined) return { dialogue: beforeAnswers(row) };
  tally.layout([layout.kind === "alpaca" ? layout.prompt : layout.messages]);
  if (layout.kind === "alpaca") {
    const answer = layout.response === undefined ? undefined : wordsIn(row.peek(layout.response));
    return { dialogue: questionDialogue(row, layout), answer };
  }
  const { messages, ...rest } = chatDialogue(row, layout);
  const last = messages.at(-1);
  if (last?.role !== "assistant" || judged === "pair") return { dialogue: { messages, ...rest } };
  return { dialogue: { messages: messages.slice(0, -1), ...rest }, answer: wordsIn(last.content) };
}

/** The text of an answer, or of the last message that is one. */
function wordsIn(answer: unknown): unknown {
  const last: unknown = Array.isArray(answer) ? answer.at(-1) : undefined;
  const value = isRecord(last) ? last.content : answer;
  return value === null || value === "" ? undefined : value;
}

/** The layout of a row with a question, and no column that is known to hold answers. */
function promptAlone(row: Fields): PromptLayout | undefined {
  const found = Object.keys(questionColumns).flatMap((name) => row.findAll([name]));
  const prompt = found.find((name) => row.isFilled(name)) ?? found[0];
  return prompt === undefined ? undefined : { kind: "alpaca", ...questionShown(row, prompt) };
}

/** What stands before both judged answers, as it is read for learning from pairs. */
function beforeAnswers(row: Fields): Dialogue {
  if (row.find(preferenceColumns.chosen) === undefined)
    throw new RowFault(`there is no prompt: expected a column such as prompt, instruction or messages. ${columnHelp(row.keys)}`);
  const values = Object.fromEntries(row.keys.map((key) => [key, row.peek(key)]));
  const { answers, leftOut } = preferences.read(new Fields(values, "columns"), undefined, new Tally());
  if (answers[0] === undefined) throw new RowFault(`where the prompt ends does not show in rows ${leftOut}.`);
  for (const name of [...Object.keys(questionColumns), ...Object.values(conversationColumns).flat()])
    for (const column of row.findAll([name])) row.take(column);
  const { messages, tools } = answers[0];
  return { messages: messages.slice(0, -1), ...(tools !== undefined && { tools }) };
}

export interface PromptOptions {
  readonly files: Omit<DatasetOptions, "dataset">;
  readonly chat: ChatFormat;
  /** Longest prompt, in tokens: longer ones are left out, as what is cut from a question is no question. */
  readonly cutoffLen: number;
  /** What to do with a row that cannot be rendered: stop with an error that names it, or leave it out and report it. */
  readonly onBadRow?: "error" | "skip";
  /** Tells the user what they should know. */
  warn(message: string): void;
}

/**
 * The prompts of some data sets, as tokens after which the model answers. Prompts longer than `cutoffLen` are left out and counted. Throws DataError for
 * a file or a row that cannot be used, and when no row is left; ConfigError for a name that is wrong.
 */
export async function loadPrompts(
  dataset: readonly string[],
  { files, chat, cutoffLen, onBadRow = "error", warn }: PromptOptions,
): Promise<PromptRow[]> {
  const { rows, notices } = await loadRows({ dataset, ...files }, prompts);
  const overlong: BadRow[] = [];
  const { examples, notices: ofRows } = await tokenizeRows<Prompt, PromptRow>(
    rows,
    onBadRow,
    ({ columns, where, ...dialogue }) => {
      const prompt = renderPrompt(chat, dialogue);
      if (prompt.length <= cutoffLen) return [{ where, tokens: prompt.length, prompt, messages: dialogue.messages, columns }];
      overlong.push({ where, reason: `the prompt has ${prompt.length} tokens, more than cutoff_len = ${cutoffLen}.` });
      return [];
    },
  );
  if (examples.length === 0) {
    const [first] = overlong;
    throw new DataError(
      first === undefined
        ? "The data set has no rows."
        : `No row is left to train on. ${first.where}: ${first.reason} Raise cutoff_len.`,
    );
  }
  for (const notice of [...notices, ...ofRows]) warn(notice);
  if (overlong.length > 0) warn(leftOutNotice(overlong, rows.length));
  return examples;
}
