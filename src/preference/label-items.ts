import { createHash } from "node:crypto";
import { join } from "node:path";
import { z } from "zod";
import { loadRows } from "../data/dataset.js";
import { prompts } from "../data/prompt-rows.js";
import { isRecord } from "../data/row-format.js";
import { ConfigError, DataError } from "../errors.js";
import { namesIn, sha256OfFile } from "../io/disk.js";
import { RowFile, type RowKind } from "../io/row-file.js";
import type { Message } from "../text/chat-template.js";
import { itemIdOf } from "./label-session.js";
import { asLabelRow, faultOf, itemOf, type LabelItem, labelItem } from "./label-store.js";

/** What a file gives to label. */
export interface ItemsToLabel {
  /** Rows that have two answers already. */
  readonly items: readonly LabelItem[];
  /** Prompts of the rows that have none. */
  readonly unanswered: readonly (readonly Message[])[];
  /** What the user should know of the file. */
  readonly notices: readonly string[];
}

/** How the columns of two answers are called in files in use. */
const answerColumns = [
  ["answer_a", "answer_b"],
  ["response_a", "response_b"],
  ["completion_a", "completion_b"],
  ["response1", "response2"],
  ["response_1", "response_2"],
  ["output_1", "output_2"],
  ["chosen", "rejected"],
] as const;

/**
 * Prompts and answers of a data file of any form that training reads. Two answers stand in `answers` (a list of two, or `{a, b}`), in columns such as
 * `answer_a` and `answer_b`, or in `chosen` and `rejected`, which are then labelled anew. A label store, too, is such a file: another rater gets the same
 * items. Throws DataError for a row that cannot be used, and one with one answer of two.
 */
export async function readItems(path: string, { datasetDir }: { datasetDir?: string | undefined } = {}): Promise<ItemsToLabel> {
  const { rows, notices } = await loadRows({ dataset: [path], ...(datasetDir !== undefined && { datasetDir }) }, prompts);
  const items = new Map<string, LabelItem>();
  const unanswered: (readonly Message[])[] = [];
  for (const { messages, columns, where } of rows) {
    const item = labelledIn(messages, columns) ?? answeredIn(messages, columns, where);
    if (item === undefined) unanswered.push(messages);
    else items.set(item.id, item);
  }
  return { items: [...items.values()], unanswered, notices };
}

/** The item of a row of a label store, or of a file of answers. */
function labelledIn(prompt: readonly Message[], columns: Readonly<Record<string, unknown>>): LabelItem | undefined {
  const row = asLabelRow({ ...columns, prompt });
  if (row !== undefined) return itemOf(row);
  const item = itemRows.read({ ...columns, prompt });
  return "row" in item ? item.row : undefined;
}

function answeredIn(
  prompt: readonly Message[],
  columns: Readonly<Record<string, unknown>>,
  where: string,
): LabelItem | undefined {
  const { answers: both } = columns;
  const found: readonly unknown[] | undefined = Array.isArray(both)
    ? both
    : isRecord(both)
      ? [both.a, both.b]
      : answerColumns.map((names) => names.map((name) => columns[name])).find((each) => each.some(isSaid));
  if (found === undefined) return undefined;
  if (found.length !== 2 || !found.every(isSaid))
    throw new DataError(`${where}: expected two answers to compare, got ${found.filter(isSaid).length}.`);
  const [a, b] = found.map((answer) => messagesOf(answer, prompt.length, where)) as [Message[], Message[]];
  const answers = { a, b };
  return { id: itemIdOf({ prompt, answers }), prompt, answers };
}

const isSaid = (answer: unknown) => answer !== undefined && answer !== null;

/** An answer as messages: text, a message, or messages, which may begin with the prompt. */
function messagesOf(answer: unknown, promptLength: number, where: string): Message[] {
  if (typeof answer === "string") return [{ role: "assistant", content: answer }];
  const list = Array.isArray(answer) ? answer : [answer];
  const messages = list.map((each): Message => {
    const content = isRecord(each) ? (each.content ?? each.value) : undefined;
    if (typeof content !== "string") throw new DataError(`${where}: expected each answer as text or messages.`);
    return isRecord(each) && typeof each.role === "string" ? ({ ...each, content } as Message) : { role: "assistant", content };
  });
  const isWhole = messages.length > 1 && ["system", "user"].includes(messages[0]!.role);
  return isWhole ? messages.slice(promptLength) : messages;
}

/** What both answers to a prompt are drawn with. */
export interface Drawing {
  /** Who answers: the hash of an adapter, or null for the base alone. */
  readonly models: { readonly a: string | null; readonly b: string | null };
  readonly sampling: Readonly<Record<string, number>>;
  readonly seed: { readonly a: number; readonly b: number };
}

/** The item of a prompt and what was answered to it. */
export function drawnItem(prompt: readonly Message[], answers: LabelItem["answers"], drawing: Drawing): LabelItem {
  return { id: itemIdOf({ prompt, answers }), prompt, answers, ...drawing };
}

/** The same for the same prompt, models, sampling and seeds: answers that are there already need not be drawn again. */
export function drawingKey(prompt: readonly Message[], { models, sampling, seed }: Partial<Drawing>): string {
  const sorted = Object.entries(sampling ?? {}).sort(([one], [other]) => (one < other ? -1 : 1));
  return createHash("sha256")
    .update(JSON.stringify([prompt, models?.a, models?.b, sorted, seed?.a, seed?.b]))
    .digest("hex");
}

const itemRows: RowKind<LabelItem> = {
  name: "a file of answers",
  start: '{"id":',
  read(value) {
    const { success, data, error } = z.looseObject(labelItem).safeParse(value);
    if (!success) return { fault: faultOf(error) };
    const { id, prompt, answers, models, sampling, seed } = data as unknown as LabelItem;
    return { row: { id, prompt, answers, ...(models && { models }), ...(sampling && { sampling }), ...(seed && { seed }) } };
  },
};

/** Answers that were drawn, one item a line. */
export type ItemFile = RowFile<LabelItem>;

/** Opens a file of answers, or begins one, as `openLabelStore` does a store. Throws as it does. */
export function openItemFile(
  path: string,
  options: { onNotice?: ((message: string) => void) | undefined } = {},
): Promise<ItemFile> {
  return RowFile.open(path, itemRows, options);
}

/** A short hash of an adapter's weights, by which a store knows it. Throws ConfigError for a folder that holds none. */
export async function adapterHash(folder: string): Promise<string> {
  const files = (await namesIn(folder))
    .filter((name) => /^(adapter|pytorch_adapter|model).*\.(safetensors|bin)$/.test(name))
    .sort();
  if (files.length === 0) throw new ConfigError(`${folder}: there are no weights of an adapter in it`);
  const hash = createHash("sha256");
  for (const name of files) hash.update(await sha256OfFile(join(folder, name)));
  return hash.digest("hex").slice(0, 16);
}
