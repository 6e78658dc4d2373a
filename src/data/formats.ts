import { ConfigError } from "../errors.js";
import type { Dialogue, Message, Tool } from "../text/chat-template.js";
import { type MessageTags, type Role, readMessages, refuseKeys } from "./messages.js";
import {
  checkLength,
  columnHelp,
  type Fields,
  kindOf,
  mostChars,
  names,
  RowFault,
  type RowFormat,
  type Tally,
  text,
} from "./row-format.js";
import { readTools } from "./tool-calls.js";

/** A row of any format as a conversation: its messages in order. Roles are system, user, assistant and tool. */
export interface Conversation extends Dialogue {
  /** For error messages, such as `orders.jsonl:17` or `alpaca.json, row 3`. */
  readonly where: string;
}

/**
 * How the columns of a file are called. Names and standards are those of LLaMA-Factory's dataset_info.json
 * (src/llamafactory/data/parser.py).
 */
export type Layout = AlpacaLayout | ChatLayout;

/** A question in columns; with earlier ones and their answers in `history`. */
export interface QuestionLayout {
  readonly prompt: string;
  /** Further columns of the question, each joined to it by a line break. */
  readonly query: readonly string[];
  readonly system?: string | undefined;
  readonly history?: string | undefined;
  readonly tools?: string | undefined;
}

/** One question and answer in a row, in columns. */
export interface AlpacaLayout extends QuestionLayout {
  readonly kind: "alpaca";
  readonly response: string;
  readonly reasoning?: string | undefined;
}

/** A list of messages in one column: ShareGPT's and OpenAI's. */
export interface ChatLayout {
  readonly kind: "chat";
  readonly messages: string;
  readonly system?: string | undefined;
  readonly tools?: string | undefined;
  readonly tags: MessageTags;
}

/** Question → answers: the names that files in use have for both, tried in this order. */
export const questionColumns: Readonly<Record<string, readonly string[]>> = {
  instruction: ["output", "response", "completion", "answer"],
  prompt: ["completion", "response", "output", "answer"],
  question: ["answer", "response", "output", "solution", "completion"],
  query: ["response", "answer", "output"],
  problem: ["solution", "answer", "response", "output"],
  instructions: ["outputs", "output", "response", "completion", "answer"],
  input: ["output", "response", "answer", "completion"],
};

/** Further columns that are read where no entry of dataset_info.json describes the rows. */
export const conversationColumns = {
  messages: ["messages", "conversations", "conversation"],
  query: ["input", "context", "passage"],
  system: ["system", "system_prompt", "system_message"],
  history: ["history"],
  tools: ["tools", "functions"],
  reasoning: ["reasoning_content", "reasoning", "thinking", "thought", "thoughts", "chain_of_thought", "cot", "complex_cot"],
} as const;

const textOnly = "attune learns from text alone";
const wholeRow = "a row is learned or not, and none counts more than others; leave rows out or weigh them by repeating them";

/**
 * Columns whose meaning is known but would be lost here, with what the user can do. An entry of dataset_info.json may name
 * other columns and leave these.
 */
export const refusedColumns: Readonly<Record<string, string>> = {
  choices: "write the choices into the question",
  options: "write the options into the question",
  documents: "write them into the question, or into a column `context`, as text",
  image: textOnly,
  images: textOnly,
  video: textOnly,
  videos: textOnly,
  audio: textOnly,
  audios: textOnly,
  weight: wholeRow,
  loss_weight: wholeRow,
  sample_weight: wholeRow,
  chat_template_kwargs: "settings of the template are the same for all rows",
};

/** Values that show a column called like thoughts to be a setting (thinking on or off). */
const settings = /^(?:on|off|yes|no|true|false|enabled|disabled|none|auto|low|medium|high)$/i;

/** Rows of any of these layouts as conversations. */
export const conversations: RowFormat<Conversation, Layout> = {
  layoutOfEntry,
  read(row, given, tally) {
    if (given === undefined) refuseRow(row);
    const layout = given ?? detectLayout(row);
    const dialogue = layout.kind === "alpaca" ? alpacaDialogue(row, layout) : chatDialogue(row, layout);
    checkLength(charsIn(dialogue), mostChars.conversation);
    checkAnswers(dialogue.messages, tally);
    tally.layout(layout.kind === "alpaca" ? [layout.prompt, layout.response] : [layout.messages]);
    return dialogue;
  },
};

/** Throws RowFault for rows of another kind of training, and for columns whose meaning would be lost. */
function refuseRow(row: Fields): void {
  for (const [good, bad] of [
    ["chosen", "rejected"],
    ["chosen_messages", "rejected_messages"],
  ] as const)
    if (row.has(good) && row.has(bad))
      throw new RowFault(
        `the rows hold "${good}" and "${bad}" answers: preference data, which stage dpo learns from. For sft, write the chosen answer into the conversation and drop both columns.`,
      );
  if (typeof row.peek("label") === "boolean")
    throw new RowFault(
      `the rows hold answers with a true/false "label": KTO data, where false marks bad answers. For sft, keep the good rows and drop the column.`,
    );
  for (const key of ["weight", "loss_weight", "sample_weight"]) if (row.peek(key) === 1) row.take(key);
  const refused = Object.fromEntries(Object.entries(refusedColumns).filter(([key]) => row.peek(key) !== 1));
  refuseKeys(row, refused, "the row");
}

/** The layout that a row's columns show, of those that hold answers. */
export function layoutShown(row: Fields): Layout | undefined {
  const one = (name: keyof typeof conversationColumns) => row.find(conversationColumns[name]);
  const messages = row.findAll(conversationColumns.messages).find((name) => Array.isArray(row.peek(name)));
  if (messages !== undefined) return { kind: "chat", messages, system: one("system"), tools: one("tools"), tags: {} };

  // Columns that are there but empty count only where no others are.
  for (const isFit of [(name: string) => row.isFilled(name), (name: string) => row.has(name)]) {
    for (const [question, answers] of Object.entries(questionColumns)) {
      const [prompt] = row.findAll([question]).filter(isFit);
      const [response] = row.findAll(answers).filter(isFit);
      if (prompt === undefined || response === undefined) continue;
      const reasoning = row.findAll(conversationColumns.reasoning).find((name) => isThought(row.peek(name)));
      return { kind: "alpaca", ...questionShown(row, prompt), response, reasoning };
    }
  }
  return undefined;
}

/** The columns that belong to the question in column `prompt`. */
export function questionShown(row: Fields, prompt: string): QuestionLayout {
  const one = (name: keyof typeof conversationColumns) => row.find(conversationColumns[name]);
  const query = row.findAll(conversationColumns.query).filter((name) => name !== prompt);
  return { prompt, query, system: one("system"), history: one("history"), tools: one("tools") };
}

/** Throws RowFault when a row's columns show nothing that can be learned from, with the mapping that would help. */
function detectLayout(row: Fields): Layout {
  const layout = layoutShown(row);
  if (layout !== undefined) return layout;
  const columns = row.keys;
  const question = Object.keys(questionColumns).find((name) => row.findAll([name]).length > 0);
  if (question !== undefined) {
    const [answer, ...others] = questionColumns[question]!;
    throw new RowFault(`the column "${answer}" is missing (or ${others.join(", ")}). ${columnHelp(columns)}`);
  }
  if (columns.includes("text"))
    throw new RowFault(
      `the rows hold plain "text", without questions and answers; sft needs both (stage pt learns from plain text). ${columnHelp(columns)}`,
    );
  throw new RowFault(`no known columns. ${columnHelp(columns)}`);
}

/** The text of a column of thoughts, unless it is a setting; a list is left for the reader of thoughts to refuse. */
function isThought(value: unknown): boolean {
  return typeof value === "string" ? value !== "" && !settings.test(value.trim()) : typeof value === "object" && value !== null;
}

function alpacaDialogue(row: Fields, layout: AlpacaLayout): Dialogue {
  if (!row.has(layout.prompt)) throw missing(row, layout.prompt, [layout.prompt, layout.response]);
  const { messages, tools = [] } = questionDialogue(row, layout);
  const answers = answerOf(row, layout);
  return dialogueOf([...messages, ...answers.messages], [...tools, ...answers.tools]);
}

function dialogueOf(messages: readonly Message[], tools: readonly Tool[]): Dialogue {
  return { messages, ...(tools.length > 0 && { tools }) };
}

/** All that comes before the answer. Throws RowFault. */
export function questionDialogue(row: Fields, layout: QuestionLayout): Dialogue {
  const messages: Message[] = [];
  const system = row.optionalText(layout.system);
  if (system !== "") messages.push({ role: "system", content: system });
  for (const [index, turn] of historyOf(row, layout.history).entries()) {
    const place = `"${layout.history}" item ${index + 1}`;
    if (!Array.isArray(turn) || turn.length !== 2) throw new RowFault(`${place} has to be [question, answer].`);
    messages.push({ role: "user", content: text(turn[0], place) }, { role: "assistant", content: text(turn[1], place) });
  }

  const questions = questionOf(row, layout);
  return dialogueOf([...messages, ...questions.messages], [...toolsOf(row, layout.tools), ...questions.tools]);
}

interface Part {
  readonly messages: readonly Message[];
  readonly tools: readonly Tool[];
}

/** The question: a text with its further columns, or TRL's list of messages. None of it is learned, only the answer. */
function questionOf(row: Fields, { prompt, query }: QuestionLayout): Part {
  if (Array.isArray(row.peek(prompt))) {
    const { messages, tools } = readMessages(row.take(prompt), prompt, row, {});
    return { messages: messages.map((each) => (each.role === "assistant" ? { ...each, isLearned: false } : each)), tools };
  }
  const question = [row.text(prompt), ...query.map((name) => row.optionalText(name))].filter((part) => part !== "").join("\n");
  if (question === "") throw new RowFault(`"${[prompt, ...query].join('" and "')}" are empty: there is no question.`);
  return { messages: [{ role: "user", content: question }], tools: [] };
}

function answerOf(row: Fields, { prompt, response, reasoning }: AlpacaLayout): Part {
  if (Array.isArray(row.peek(response))) return readMessages(row.take(response), response, row, {});
  if (!row.has(response)) throw missing(row, response, [prompt, response]);
  const content = row.text(response);
  if (content.trim() === "") throw new EmptyAnswer(`"${response}" is empty: there is nothing to learn from.`);
  const thoughts = row.optionalText(reasoning);
  return { messages: [{ role: "assistant", content, ...(thoughts !== "" && { reasoning_content: thoughts }) }], tools: [] };
}

function missing(row: Fields, name: string, expected: readonly string[]): RowFault {
  return new RowFault(`the column "${name}" is missing (expected "${expected.join('" and "')}"). ${columnHelp(row.keys)}`);
}

function historyOf(row: Fields, name: string | undefined): unknown[] {
  const value = name === undefined ? undefined : row.take(name);
  if (value === undefined) return [];
  if (!Array.isArray(value)) throw new RowFault(`"${name}" has to be a list of [question, answer], got ${kindOf(value)}.`);
  return value;
}

/** All messages of a row. Throws RowFault. */
export function chatDialogue(row: Fields, layout: ChatLayout): Dialogue {
  if (!row.has(layout.messages)) throw new RowFault(`the column "${layout.messages}" is missing. ${columnHelp(row.keys)}`);
  const read = readMessages(row.take(layout.messages) ?? null, layout.messages, row, layout.tags);
  const system = row.optionalText(layout.system);
  const isSaid = system === "" || read.messages.some(({ role, content }) => role === "system" && content === system);
  const messages = isSaid ? read.messages : [{ role: "system", content: system }, ...read.messages];
  return dialogueOf(messages, [...toolsOf(row, layout.tools), ...read.tools]);
}

function toolsOf(row: Fields, name: string | undefined): Tool[] {
  const value = name === undefined ? undefined : row.take(name);
  return value === undefined ? [] : readTools(value, `"${name}"`);
}

/** The characters of all texts, and a few for what a template writes around each. */
export function charsIn(value: unknown): number {
  if (typeof value === "string") return value.length;
  if (typeof value !== "object" || value === null) return 1;
  return Object.values(value).reduce((total: number, item) => total + 16 + charsIn(item), 0);
}

/** Whether a message says or calls something. */
export function speaks({ content, tool_calls }: Message): boolean {
  return content.trim() !== "" || tool_calls !== undefined;
}

/** What is wrong with a row whose answer is empty. */
export class EmptyAnswer extends RowFault {}

/** Throws RowFault when there is nothing to learn. */
function checkAnswers(messages: readonly Message[], tally: Tally): void {
  const answers = messages.filter(({ role }) => role === "assistant");
  if (!answers.some(speaks)) throw new EmptyAnswer("the assistant says nothing: there is nothing to learn from.");
  const learned = answers.filter(({ isLearned }) => isLearned !== false);
  if (!learned.some(speaks)) throw new RowFault("no answer is to be learned: each is empty, or its weight is 0.");
  if (!learned.every(speaks)) tally.fact("hold answers without words, which are learned as they stand.");
  if (messages.some(({ content }) => /\{\{(name|author)\}\}/.test(content)))
    tally.fact("hold {{name}} or {{author}}, to be replaced in the file; they are learned as they stand.");
}

const columnKeys = ["prompt", "query", "response", "history", "messages", "system", "tools"];
const rankingKeys = ["chosen", "rejected", "kto_tag"];
const mediaKeys = ["images", "videos", "audios"];
const tagKeys = ["role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"];

/**
 * The layout that an entry of dataset_info.json describes; undefined when it leaves it to the file.
 * Throws ConfigError that names the entry and the key.
 */
function layoutOfEntry(entry: Readonly<Record<string, unknown>>, where: string): Layout | undefined {
  const columns = names(entry.columns, "columns", [...columnKeys, ...rankingKeys, ...mediaKeys], where);
  const tags = names(entry.tags, "tags", tagKeys, where);
  if (entry.ranking === true || rankingKeys.some((key) => columns[key] !== undefined))
    throw new ConfigError(
      `${where}: this is preference data (ranking), which stages dpo and kto learn from; sft needs one answer for each question.`,
    );
  const media = mediaKeys.find((key) => columns[key] !== undefined);
  if (media !== undefined) throw new ConfigError(`${where}: the data has ${media}; attune learns from text alone.`);

  const formatting = entry.formatting ?? "alpaca";
  if (formatting === "alpaca") {
    if (entry.formatting === undefined && entry.columns === undefined) return undefined;
    return {
      kind: "alpaca",
      prompt: columns.prompt ?? "instruction",
      query: [columns.query ?? "input"],
      response: columns.response ?? "output",
      system: columns.system,
      history: columns.history,
      tools: columns.tools,
    };
  }
  if (formatting !== "sharegpt" && formatting !== "openai")
    throw new ConfigError(
      `${where}: formatting ${JSON.stringify(formatting)} is not known; expected alpaca, sharegpt or openai.`,
    );
  const named: readonly (readonly [string | undefined, Role])[] = [
    [tags.user_tag, "user"],
    [tags.assistant_tag, "assistant"],
    [tags.system_tag, "system"],
    [tags.observation_tag, "tool"],
    [tags.function_tag, "call"],
  ];
  return {
    kind: "chat",
    messages: columns.messages ?? (formatting === "openai" ? "messages" : "conversations"),
    system: columns.system,
    tools: columns.tools,
    tags: {
      role: tags.role_tag,
      content: tags.content_tag,
      roles: Object.fromEntries(named.filter(([tag]) => tag !== undefined)),
    },
  };
}
