import { ConfigError, DataError } from "../errors.js";
import type { Dialogue, Message } from "../text/chat-template.js";
import type { Row } from "./read-rows.js";
import { columnHelp, formatEach, isRecord, kindOf, names, optionalText, RowFault, type RowFormat, text } from "./row-format.js";

/** A row of any format: what is said, in order. Roles are system, user, assistant and tool. */
export interface Conversation extends Dialogue {
  /** For error messages, such as `orders.jsonl:17` or `alpaca.json, row 3`. */
  readonly where: string;
}

/**
 * How the columns of a file are called. Names and standards are those of LLaMA-Factory's dataset_info.json
 * (src/llamafactory/data/parser.py).
 */
export type Layout = AlpacaLayout | ChatLayout;

/** One question and answer in a row, in columns; with earlier ones in `history`. */
export interface AlpacaLayout {
  readonly kind: "alpaca";
  readonly prompt: string;
  readonly query?: string;
  readonly response: string;
  readonly system?: string;
  readonly history?: string;
}

/** A list of messages in one column: ShareGPT's and OpenAI's. */
export interface ChatLayout {
  readonly kind: "chat";
  readonly messages: string;
  readonly system?: string;
  readonly tools?: string;
  readonly roleTag: string;
  readonly contentTag: string;
  /** What the file calls the roles → system, user, assistant, tool. */
  readonly roles: Readonly<Record<string, string>>;
}

/** Names that files in use have for question and answer, tried in this order. */
const columnPairs: readonly (readonly [prompt: string, response: string])[] = [
  ["instruction", "output"],
  ["prompt", "completion"],
  ["prompt", "response"],
  ["instruction", "response"],
  ["question", "answer"],
  ["question", "response"],
  ["query", "response"],
  ["input", "output"],
];

const shareGptRoles = {
  human: "user",
  user: "user",
  gpt: "assistant",
  assistant: "assistant",
  system: "system",
  observation: "tool",
  tool: "tool",
  function_call: "assistant",
};
const openAiRoles = {
  system: "system",
  developer: "system",
  user: "user",
  assistant: "assistant",
  tool: "tool",
  function: "tool",
};

/**
 * Finds out the layout from a row: its column names, and for chats the names inside the first message.
 * Throws DataError when it is none that can be learned from, with the mapping that would help.
 */
function detectLayout({ value, where }: Row): Layout {
  if ("chosen" in value && "rejected" in value)
    throw new DataError(
      `${where}: the rows hold "chosen" and "rejected" answers: preference data, which stage dpo learns from. For sft, write the chosen answer into the conversation and drop both columns.`,
    );

  for (const column of ["messages", "conversations", "conversation"]) {
    const list = value[column];
    if (!Array.isArray(list)) continue;
    if (typeof value.label === "boolean")
      throw new DataError(
        `${where}: the rows hold chats with a true/false "label": KTO data, where false marks bad answers. For sft, keep the good rows and drop the column.`,
      );
    const first: unknown = list[0];
    if (isRecord(first) && "from" in first && "value" in first) return chatLayout(column, "from", "value", shareGptRoles);
    if (isRecord(first) && "role" in first) return chatLayout(column, "role", "content", openAiRoles);
    throw new DataError(
      `${where}: the messages in "${column}" have neither "from" and "value" (ShareGPT) nor "role" and "content" (OpenAI). If they have others, name them in \`tags:\`: {"role_tag": "…", "content_tag": "…"}.`,
    );
  }

  for (const [prompt, response] of columnPairs) {
    if (!(prompt in value && response in value)) continue;
    // Columns that only some rows have may be missing in this one.
    const query = prompt === "instruction" ? { query: "input" } : {};
    return { kind: "alpaca", prompt, response, ...query, system: "system", history: "history" };
  }

  const columns = Object.keys(value);
  if (columns.includes("text"))
    throw new DataError(
      `${where}: the rows hold plain "text", without questions and answers; sft needs both (stage pt learns from plain text). ${columnHelp(columns)}`,
    );
  throw new DataError(`${where}: no known columns. ${columnHelp(columns)}`);
}

function chatLayout(messages: string, roleTag: string, contentTag: string, roles: Readonly<Record<string, string>>): ChatLayout {
  return { kind: "chat", messages, roleTag, contentTag, roles, system: "system", tools: "tools" };
}

/** Rows of any of these layouts as conversations. */
export const conversations: RowFormat<Conversation, Layout> = {
  layoutOfEntry,
  detectLayout,
  formatRows(file, layout) {
    let withTools = 0;
    const { rows, bad } = formatEach(file, ({ value, where }): Conversation => {
      const messages = layout.kind === "alpaca" ? alpacaMessages(value, layout) : chatMessages(value, layout);
      if (layout.kind === "chat" && layout.tools !== undefined && hasTools(value[layout.tools])) withTools++;
      return { messages, where };
    });
    const notices: string[] = [];
    if (withTools > 0) notices.push(`${withTools} rows list tools, which are left out: attune learns from the messages alone.`);
    const unfilled = placeholders(rows);
    if (unfilled > 0)
      notices.push(`${unfilled} rows hold {{name}} or {{author}}, to be replaced in the file; they are learned as they stand.`);
    return { rows, bad, notices };
  },
};

function placeholders(rows: readonly Conversation[]): number {
  return rows.filter(({ messages }) => messages.some(({ content }) => /\{\{(name|author)\}\}/.test(content))).length;
}

function alpacaMessages(row: Record<string, unknown>, layout: AlpacaLayout): Message[] {
  const messages: Message[] = [];
  const system = optionalText(row, layout.system);
  if (system !== "") messages.push({ role: "system", content: system });
  for (const [index, turn] of historyOf(row, layout.history).entries()) {
    if (!Array.isArray(turn) || turn.length !== 2)
      throw new RowFault(`"${layout.history}" item ${index + 1} has to be [question, answer].`);
    messages.push({ role: "user", content: text(turn[0], `"${layout.history}" item ${index + 1}`) });
    messages.push({ role: "assistant", content: text(turn[1], `"${layout.history}" item ${index + 1}`) });
  }

  const question = [column(row, layout.prompt, layout), optionalText(row, layout.query)].filter((part) => part !== "").join("\n");
  if (question === "") {
    const names = [layout.prompt, layout.query].filter((name) => name !== undefined).join('" and "');
    throw new RowFault(`"${names}" are empty: there is no question.`);
  }
  const answer = column(row, layout.response, layout);
  if (answer.trim() === "") throw new RowFault(`"${layout.response}" is empty: there is nothing to learn from.`);
  messages.push({ role: "user", content: question }, { role: "assistant", content: answer });
  return messages;
}

function historyOf(row: Record<string, unknown>, name: string | undefined): unknown[] {
  const value = name === undefined ? undefined : row[name];
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) throw new RowFault(`"${name}" has to be a list of [question, answer], got ${kindOf(value)}.`);
  return value;
}

function chatMessages(row: Record<string, unknown>, layout: ChatLayout): Message[] {
  const list = row[layout.messages];
  if (list === undefined) throw new RowFault(`the column "${layout.messages}" is missing. ${columnHelp(Object.keys(row))}`);
  if (!Array.isArray(list) || list.length === 0)
    throw new RowFault(`"${layout.messages}" has to be a list of messages, got ${kindOf(list)}.`);

  const messages: Message[] = [];
  const system = optionalText(row, layout.system);
  if (system !== "") messages.push({ role: "system", content: system });
  for (const [index, message] of list.entries()) {
    const place = `message ${index + 1}`;
    if (!isRecord(message)) throw new RowFault(`${place} has to be an object, got ${kindOf(message)}.`);
    const tag = message[layout.roleTag];
    const known = Object.keys(layout.roles);
    if (typeof tag !== "string" || !Object.hasOwn(layout.roles, tag))
      throw new RowFault(
        `${place} has ${tag === undefined ? `no "${layout.roleTag}"` : `the ${layout.roleTag} ${JSON.stringify(tag)}`}; expected one of ${known.join(", ")}. Others can be named in \`tags:\`, such as {"user_tag": "…", "assistant_tag": "…"}.`,
      );
    const content = message[layout.contentTag];
    if ((content === null || content === undefined) && "tool_calls" in message)
      throw new RowFault(`${place} is a tool call without text; tool calls are not supported.`);
    if (content === undefined) throw new RowFault(`${place} has no "${layout.contentTag}".`);
    messages.push({ role: layout.roles[tag]!, content: messageText(content, place) });
  }
  if (!messages.some(({ role, content }) => role === "assistant" && content.trim() !== ""))
    throw new RowFault("the assistant says nothing: there is nothing to learn from.");
  return messages;
}

/** A message's content: text, or OpenAI's list of parts when all are text. */
function messageText(content: unknown, place: string): string {
  if (!Array.isArray(content)) return text(content, place);
  return content
    .map((part: unknown) => {
      if (isRecord(part) && part.type === "text") return text(part.text, place);
      throw new RowFault(
        `${place} has a part of type ${JSON.stringify(isRecord(part) ? part.type : part)}; only text is supported.`,
      );
    })
    .join("");
}

function column(row: Record<string, unknown>, name: string, layout: AlpacaLayout): string {
  if (row[name] === undefined) {
    const { prompt, response } = layout;
    throw new RowFault(
      `the column "${name}" is missing (expected "${prompt}" and "${response}"). ${columnHelp(Object.keys(row))}`,
    );
  }
  return text(row[name], `"${name}"`);
}

function hasTools(tools: unknown): boolean {
  return typeof tools === "string" ? !["", "[]"].includes(tools.trim()) : Array.isArray(tools) && tools.length > 0;
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
      query: columns.query ?? "input",
      response: columns.response ?? "output",
      ...(columns.system === undefined ? {} : { system: columns.system }),
      ...(columns.history === undefined ? {} : { history: columns.history }),
    };
  }
  if (formatting !== "sharegpt" && formatting !== "openai")
    throw new ConfigError(
      `${where}: formatting ${JSON.stringify(formatting)} is not known; expected alpaca, sharegpt or openai.`,
    );
  const isOpenAi = formatting === "openai";
  return {
    kind: "chat",
    messages: columns.messages ?? (isOpenAi ? "messages" : "conversations"),
    roleTag: tags.role_tag ?? (isOpenAi ? "role" : "from"),
    contentTag: tags.content_tag ?? (isOpenAi ? "content" : "value"),
    roles: {
      ...(isOpenAi ? openAiRoles : shareGptRoles),
      ...Object.fromEntries(
        (
          [
            [tags.user_tag, "user"],
            [tags.assistant_tag, "assistant"],
            [tags.system_tag, "system"],
            [tags.observation_tag, "tool"],
            [tags.function_tag, "assistant"],
          ] as const
        ).filter(([tag]) => tag !== undefined),
      ),
    },
    ...(columns.system === undefined ? {} : { system: columns.system }),
    ...(columns.tools === undefined ? {} : { tools: columns.tools }),
  };
}
