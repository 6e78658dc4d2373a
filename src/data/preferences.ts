import type { Dialogue } from "../text/chat-template.js";
import { conversationColumns, conversations, EmptyAnswer, type Layout, questionColumns, speaks } from "./formats.js";
import { roleKeys, roleNames } from "./messages.js";
import { Fields, isRecord, kindOf, names, RowFault, type RowFormat, type Tally, text } from "./row-format.js";

/** Answers to one question, with what somebody thought of each: a better and a worse one, or ones that are good or bad. */
export interface Preference {
  /** None where nothing was preferred. */
  readonly answers: readonly JudgedAnswer[];
  /** By how much the chosen answer is better; TRL's column. */
  readonly margin?: number;
  /** Why there are no answers, as it goes on from "3 rows": such as "with equal answers". */
  readonly leftOut?: string;
  /** For error messages, such as `pairs.jsonl:17`. */
  readonly where: string;
}

/** A whole conversation; its last message is the answer. */
export interface JudgedAnswer extends Dialogue {
  readonly judgement: "chosen" | "rejected" | "good" | "bad";
}

export interface PreferenceLayout {
  readonly chosen: string;
  readonly rejected: string;
  /** The column that says true of a good answer, and false of a bad one. */
  readonly tag: string | undefined;
  readonly rest: Layout | undefined;
}

/** Where judged answers are looked for, in this order. */
export const preferenceColumns = {
  /** LLaMA-Factory's and TRL's, and OpenAI's. */
  chosen: ["chosen", "chosen_messages", "preferred_output"],
  rejected: ["rejected", "rejected_messages", "non_preferred_output"],
  /** True of a good answer, false of a bad one. */
  tag: ["kto_tag", "label"],
  /** What was found of a pair, where it may be that neither is better. */
  verdict: ["label", "winner"],
} as const;

/** Whether a row holds judged answers. */
export function isPreference(row: Fields): boolean {
  return isPair(row) || tagOf(row) !== undefined;
}

/** Whether a row holds two answers, of which one is better. */
export function isPair(row: Fields): boolean {
  const { chosen, rejected } = preferenceColumns;
  return chosen.some((name, i) => row.has(name) && row.has(rejected[i]!));
}

function tagOf(row: Fields): string | undefined {
  const isAnswer = row.findAll([...conversationColumns.messages, ...Object.values(questionColumns).flat()]).length > 0;
  return isAnswer ? preferenceColumns.tag.find((name) => typeof row.peek(name) === "boolean") : undefined;
}

/**
 * Rows of judged answers: LLaMA-Factory's in Alpaca's and ShareGPT's form (`ranking`, `kto_tag`), TRL's with and without `prompt`, and OpenAI's. A row
 * becomes as many conversations as it has answers, each read as rows of stage sft are. What both sides of a pair share before their last message is the
 * prompt. Rows of which nothing was preferred are kept, without answers and with the reason.
 * Source: LLaMA-Factory 0.9.5, data/converter.py; TRL 1.16, "Dataset formats and types"; OpenAI, preference fine-tuning.
 */
export const preferences: RowFormat<Preference, PreferenceLayout> = {
  layoutOfEntry({ ranking: _, columns, ...entry }, where) {
    const known = isRecord(columns) ? columns : {};
    const { chosen = null, rejected = null, kto_tag = null, ...others } = known;
    const named = names({ chosen, rejected, kto_tag }, "columns", ["chosen", "rejected", "kto_tag"], where);
    const rest = conversations.layoutOfEntry({ ...entry, ...(columns === undefined ? {} : { columns: others }) }, where);
    return { chosen: named.chosen ?? "chosen", rejected: named.rejected ?? "rejected", tag: named.kto_tag, rest };
  },

  read(row, given, tally) {
    const layout = given ?? {
      chosen: row.find(preferenceColumns.chosen) ?? "chosen",
      rejected: row.find(preferenceColumns.rejected) ?? "rejected",
      tag: tagOf(row),
      rest: undefined,
    };
    const columns = unfolded(row);
    for (const key of row.keys) row.take(key);
    return layout.tag === undefined ? readPair(row, columns, layout, tally) : readJudged(row, columns, layout, tally);
  },
};

/** The columns of a row; OpenAI's `input` is an object that holds the question. */
function unfolded(row: Fields): Record<string, unknown> {
  const columns = Object.fromEntries(row.keys.map((key) => [key, row.peek(key)]));
  const { input } = columns;
  if (!isRecord(input) || !Array.isArray(input.messages)) return columns;
  const fields = row.within(input, "keys of input");
  const [messages, tools] = [fields.take("messages"), fields.take("tools")];
  const { input: _, ...others } = columns;
  return { ...others, messages, ...(tools !== undefined && { tools }) };
}

type Read = Omit<Preference, "where">;

/** An answer that is good or bad by itself. */
function readJudged(row: Fields, columns: Record<string, unknown>, { tag, rest }: PreferenceLayout, tally: Tally): Read {
  const { [tag!]: isGood, ...others } = columns;
  if (typeof isGood !== "boolean") throw new RowFault(`"${tag}" has to be true or false, got ${kindOf(isGood ?? null)}.`);
  const answer = readAnswer(row.within(others, "columns"), rest, isGood ? "good" : "bad", tally);
  return answer === null ? { answers: [], leftOut: "with an empty answer" } : { answers: [answer] };
}

function readPair(row: Fields, columns: Record<string, unknown>, layout: PreferenceLayout, tally: Tally): Read {
  const { chosen, rejected, rest } = layout;
  if (!row.has(chosen) && !row.has(rejected))
    throw new RowFault(
      `expected judged answers: "chosen" and "rejected", or an answer with true or false in "kto_tag" or "label". The row has ${row.keys.slice(0, 12).join(", ") || "no columns"}.`,
    );
  const margin = marginIn(columns);
  const verdict = verdictIn(columns);
  const { answers: unranked, repeat } = takeLabelColumns(columns);
  if (repeat === true) return { answers: [], leftOut: "that a rater was shown a second time" };
  if (verdict === "tie") return { answers: [], leftOut: "that are ties" };
  const { [chosen]: better, [rejected]: worse, margin: _, ...others } = columns;
  const sides = verdict === "both bad" && isRecord(unranked) ? ([unranked.a, unranked.b] as const) : ([better, worse] as const);
  for (const [i, side] of sides.entries())
    if (isNothing(side)) return { answers: [], leftOut: `without a "${i === 0 ? chosen : rejected}" answer` };

  const rows = rowsOfSides(sides, others, layout);
  const judged = verdict === "both bad" ? (["bad", "bad"] as const) : (["chosen", "rejected"] as const);
  // Columns that nobody reads are told once, not for each answer.
  const fields = [row.within(rows[0], "columns"), new Fields(rows[1], "columns")] as const;
  const answers = fields.map((each, i) => readAnswer(each, rest, judged[i]!, tally));
  const [first, second] = answers;
  if (!first || !second) return { answers: [], leftOut: "with an empty answer" };
  checkSamePrompt(first, second, layout);
  if (sameMessages(first.messages.slice(-1), second.messages.slice(-1))) return { answers: [], leftOut: "with equal answers" };
  return { answers: [first, second], ...(margin !== undefined && { margin }) };
}

/** Null for an answer that says nothing. */
function readAnswer(
  fields: Fields,
  layout: Layout | undefined,
  judgement: JudgedAnswer["judgement"],
  tally: Tally,
): JudgedAnswer | null {
  try {
    const dialogue = conversations.read(fields, layout, tally);
    const last = dialogue.messages.at(-1)!;
    if (last.role !== "assistant") throw new RowFault(`the last message is the ${last.role}'s: expected the assistant's answer.`);
    return speaks(last) ? { ...dialogue, judgement } : null;
  } catch (error) {
    if (error instanceof EmptyAnswer) return null;
    throw error;
  }
}

function isNothing(answer: unknown): boolean {
  if (answer === undefined || answer === null) return true;
  if (typeof answer === "string") return answer.trim() === "";
  return typeof answer === "object" && Object.keys(answer).length === 0;
}

function marginIn({ margin }: Record<string, unknown>): number | undefined {
  if (margin === undefined || margin === null) return undefined;
  if (typeof margin !== "number" || !Number.isFinite(margin))
    throw new RowFault(`"margin" has to be a number, got ${kindOf(margin)}.`);
  return margin;
}

/** What stands in a column of verdicts, in words of attune, FastChat and others; the column is then read. */
function verdictIn(columns: Record<string, unknown>): "tie" | "both bad" | undefined {
  for (const name of preferenceColumns.verdict) {
    const value = columns[name];
    if (typeof value !== "string") continue;
    const word = value.toLowerCase().replaceAll(/[^a-z]/g, "");
    if (!["a", "b", "modela", "modelb", "tie", "bothbad", "tiebothbad"].includes(word)) continue;
    delete columns[name];
    if (word === "tie") return "tie";
    if (word.endsWith("bothbad")) return "both bad";
  }
  return undefined;
}

/** What a row of a label store says beside prompt and answers: how the label came about, which nobody trains on. */
const labelColumns = ["id", "answers", "repeat", "shown", "models", "sampling", "seed", "rater", "ms", "note", "ts"];

/** Takes these columns out of a row of a label store (src/preference/label-store.ts); none out of any other row. */
function takeLabelColumns(columns: Record<string, unknown>): Record<string, unknown> {
  if (!isRecord(columns.shown) || typeof columns.rater !== "string") return {};
  const taken = Object.fromEntries(labelColumns.map((name) => [name, columns[name]]));
  for (const name of labelColumns) delete columns[name];
  return taken;
}

/** The rows of stage sft that both answers make with the rest of their row. */
function rowsOfSides(
  [better, worse]: readonly [unknown, unknown],
  others: Record<string, unknown>,
  { chosen, rejected, rest }: PreferenceLayout,
): [Record<string, unknown>, Record<string, unknown>] {
  if (rest === undefined) {
    const { question, messages } = questionIn(others);
    if (isWholeConversation(better) && isWholeConversation(worse)) {
      const left = Object.fromEntries(Object.entries(others).filter(([name]) => name !== question && name !== messages));
      return [
        { ...left, messages: better },
        { ...left, messages: worse },
      ];
    }
    if (question === undefined && messages === undefined && typeof better === "string" && typeof worse === "string") {
      const [a, b] = splitTexts(text(better, `"${chosen}"`), text(worse, `"${rejected}"`));
      return [
        { ...others, messages: a },
        { ...others, messages: b },
      ];
    }
  }
  return [withAnswer(others, better, chosen, rest), withAnswer(others, worse, rejected, rest)];
}

function questionIn(row: Record<string, unknown>): { question: string | undefined; messages: string | undefined } {
  const fields = new Fields(row, "columns");
  const question = Object.keys(questionColumns).find((column) => fields.findAll([column]).length > 0);
  return {
    question: question === undefined ? undefined : fields.findAll([question])[0],
    messages: fields.find(conversationColumns.messages),
  };
}

/** Whether an answer is a list of messages that begins before the assistant says anything. */
export function isWholeConversation(answer: unknown): boolean {
  if (!Array.isArray(answer) || answer.length < 2 || !isRecord(answer[0])) return false;
  const first = answer[0];
  const role = roleKeys.map((key) => first[key]).find((value) => typeof value === "string");
  return role !== undefined && [...roleNames.system, ...roleNames.user].includes(role.trim().toLowerCase());
}

/** Anthropic's HH-RLHF writes turns so. */
const turnMarks = /\n\n(Human|Assistant):/;

/**
 * Two texts without a question of their own: turns if they are written as HH-RLHF's; else what both begin with is the question, up to the last blank,
 * so that no word is parted. (TRL splits at the first character that differs.)
 */
function splitTexts(chosen: string, rejected: string): [Turn[], Turn[]] {
  const turns = [chosen, rejected].map(turnsIn);
  if (turns[0] && turns[1]) return [turns[0], turns[1]];
  let shared = 0;
  while (shared < Math.min(chosen.length, rejected.length) && chosen[shared] === rejected[shared]) shared++;
  while (shared > 0 && !/\s/.test(chosen[shared - 1]!)) shared--;
  const question = chosen.slice(0, shared).trim();
  if (question === "")
    throw new RowFault(
      "both answers are texts that begin differently, and there is no question: expected a column such as prompt.",
    );
  const asked = (answer: string): Turn[] => [
    { role: "user", content: question },
    { role: "assistant", content: answer.slice(shared) },
  ];
  return [asked(chosen), asked(rejected)];
}

interface Turn {
  readonly role: string;
  readonly content: string;
}

function turnsIn(whole: string): Turn[] | null {
  const [before, ...parts] = (whole.startsWith("\n\n") ? whole : `\n\n${whole}`).split(turnMarks);
  if (before !== "" || parts.length === 0) return null;
  return Array.from({ length: parts.length / 2 }, (_, i) => ({
    role: parts[2 * i] === "Human" ? "user" : "assistant",
    content: parts[2 * i + 1]!.trim(),
  }));
}

function checkSamePrompt({ messages: a }: Dialogue, { messages: b }: Dialogue, { chosen, rejected }: PreferenceLayout): void {
  if (sameMessages(a.slice(0, -1), b.slice(0, -1))) return;
  const different = a.findIndex((message, i) => !sameMessages([message], b.slice(i, i + 1)));
  throw new RowFault(
    `the conversations of "${chosen}" and "${rejected}" part at message ${different + 1} of ${a.length} and ${b.length}: expected the same messages before the last one.`,
  );
}

function sameMessages(a: Dialogue["messages"], b: Dialogue["messages"]): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

/** The row of stage sft that an answer makes of the rest of its row. */
function withAnswer(
  row: Readonly<Record<string, unknown>>,
  answer: unknown,
  name: string,
  layout: Layout | undefined,
): Record<string, unknown> {
  const { question, messages: found } = questionIn(row);
  const asMessages = Array.isArray(answer)
    ? answer
    : [isRecord(answer) ? answer : { role: "assistant", content: text(answer, `"${name}"`) }];
  const messages = layout?.kind === "chat" ? layout.messages : found;
  if (messages !== undefined && layout?.kind !== "alpaca") {
    const before = row[messages];
    if (!Array.isArray(before)) throw new RowFault(`"${messages}" has to be a list of messages, got ${kindOf(before ?? null)}.`);
    return { ...row, [messages]: [...before, ...asMessages] };
  }
  if (layout !== undefined && layout.kind === "alpaca") return { ...row, [layout.response]: answer };
  if (question !== undefined) return { ...row, [questionColumns[question.toLowerCase()]![0]!]: answer };
  if (Array.isArray(answer)) return { ...row, messages: answer }; // the question stands in both answers
  throw new RowFault(`the rows hold "${name}" and no question: expected a column such as prompt, instruction or messages.`);
}
