import type { Message, Tool, ToolCall } from "../text/chat-template.js";
import { type Fields, isRecord, jsonIn, kindOf, RowFault, text } from "./row-format.js";
import { readCalls, readTools } from "./tool-calls.js";

/** The names of keys and roles in a list of messages. What is not given is found out from each message. */
export interface MessageTags {
  readonly role?: string | undefined;
  readonly content?: string | undefined;
  /** Further names of roles. */
  readonly roles?: Readonly<Record<string, Role>>;
}

/** Templates know the first four; `call` is an assistant's turn whose text is the JSON of its calls (ShareGPT's `function_call`). */
export type Role = "system" | "user" | "assistant" | "tool" | "call";

export const roleKeys = ["role", "from"];
export const contentKeys = ["content", "value"];

/** What files in use call the roles, in lower case. */
export const roleNames: Readonly<Record<Role, readonly string[]>> = {
  system: ["system", "developer"],
  user: ["user", "human"],
  assistant: ["assistant", "gpt", "model", "bot", "ai", "chatgpt", "bing", "bard", "claude"],
  tool: ["tool", "function", "observation", "tool_response", "function_response", "ipython"],
  call: ["function_call", "tool_call"],
};

/** What the assistant thought before it answered. */
export const reasoningKeys = ["reasoning_content", "reasoning", "thinking"];

/** Whether an assistant's message is learned: 1 or true, 0 or false. OpenAI's, axolotl's, ms-swift's and LLaMA-Factory's names. */
export const weightKeys = ["weight", "train", "training", "loss", "loss_weight", "loss_mask"];

/** Keys of a message whose meaning is known but would be lost here, with what the user can do. */
export const refusedMessageKeys: Readonly<Record<string, string>> = {
  refusal: "write the refusal as the message's content",
  audio: "attune learns from text alone",
  image: "attune learns from text alone",
  images: "attune learns from text alone",
  video: "attune learns from text alone",
  videos: "attune learns from text alone",
  audios: "attune learns from text alone",
  mask: "it does not say whether 1 is what is learned or what is hidden; write `weight`, 1 or 0",
  train_detail: "attune learns whole messages; write `train`",
};

/** Types of the parts that a message's content may be made of → what they are read as. */
export const partTypes: Readonly<Record<string, "text" | "reasoning" | "calls">> = {
  text: "text",
  input_text: "text",
  output_text: "text",
  thinking: "reasoning",
  reasoning: "reasoning",
  tool_call: "calls",
};

const roleOf = new Map(Object.entries(roleNames).flatMap(([role, names]) => names.map((name) => [name, role as Role] as const)));

/** A list of messages, and the tools that stand in its system message. Throws RowFault that names the message. */
export function readMessages(
  list: unknown,
  name: string,
  row: Fields,
  tags: MessageTags,
): { messages: Message[]; tools: Tool[] } {
  if (!Array.isArray(list) || list.length === 0)
    throw new RowFault(`"${name}" has to be a list of messages, got ${kindOf(list)}.`);
  const tools: Tool[] = [];
  const messages = list.map((value: unknown, index) => {
    const place = `message ${index + 1}`;
    if (!isRecord(value)) throw new RowFault(`${place} has to be an object, got ${kindOf(value)}.`);
    const fields = row.within(value, "keys of messages");
    refuseKeys(fields, refusedMessageKeys, place);
    const role = roleIn(fields, tags, place);
    if (role === "system" && fields.isFilled("tools")) tools.push(...readTools(fields.take("tools"), `"tools" of ${place}`));
    return readMessage(fields, role, tags.content ?? fields.find(contentKeys) ?? "content", place);
  });
  return { messages, tools };
}

/** Throws RowFault for the first filled key whose meaning would be lost. */
export function refuseKeys(fields: Fields, refused: Readonly<Record<string, string>>, place: string): void {
  for (const [key, advice] of Object.entries(refused))
    if (fields.isFilled(key)) throw new RowFault(`${place} has "${key}", which cannot be learned from: ${advice}.`);
}

function roleIn(fields: Fields, tags: MessageTags, place: string): Role {
  const key = tags.role ?? fields.find(roleKeys);
  const name = key === undefined ? undefined : fields.take(key);
  if (typeof name === "string") {
    if (tags.roles !== undefined && Object.hasOwn(tags.roles, name)) return tags.roles[name]!;
    const role = roleOf.get(name.trim().toLowerCase());
    if (role !== undefined) return role;
  }
  const known = [...Object.keys(tags.roles ?? {}), ...roleOf.keys()].join(", ");
  if (key === undefined)
    throw new RowFault(
      `${place} has neither "from" and "value" (ShareGPT) nor "role" and "content" (OpenAI). If they have others, name them in dataset_info.json, \`tags\`: {"role_tag": "…", "content_tag": "…"}.`,
    );
  throw new RowFault(
    `${place} has ${name === undefined ? `no "${key}"` : `the ${key} ${JSON.stringify(name)?.slice(0, 60)}`}; expected one of ${known}. Others can be named in dataset_info.json, \`tags\`, such as {"user_tag": "…", "assistant_tag": "…"}.`,
  );
}

function readMessage(fields: Fields, role: Role, contentKey: string, place: string): Message {
  const isAssistant = role === "assistant" || role === "call";
  const said = readContent(fields, contentKey, place);
  if (!isAssistant && (said.reasoning !== "" || said.calls.length > 0))
    throw new RowFault(`${place} holds thoughts or calls, which only an assistant's message may.`);
  const isLearned = readWeight(fields, isAssistant, place);
  if (!isAssistant) {
    for (const key of ["tool_calls", "function_call"])
      if (fields.isFilled(key)) throw new RowFault(`${place} has "${key}", which only an assistant's message may.`);
    if (said.text === undefined) throw new RowFault(`${place} has no "${contentKey}".`);
    return { role, content: said.text, ...(role === "tool" && answeredCall(fields, place)) };
  }

  const written = role === "call" ? callsInText(said.text ?? "", place, fields) : { text: said.text, calls: [] };
  const calls = [...said.calls, ...written.calls, ...callsOf(fields, place)];
  const reasoning = [said.reasoning, readReasoning(fields, place)].filter((thought) => thought !== "");
  if (reasoning.length > 1) throw new RowFault(`${place} holds its thoughts twice, in its content and beside it.`);
  if (written.text === undefined && calls.length === 0) throw new RowFault(`${place} has no "${contentKey}" and calls nothing.`);
  return {
    role: "assistant",
    content: written.text ?? "",
    ...(reasoning.length > 0 && { reasoning_content: reasoning[0]! }),
    ...(calls.length > 0 && { tool_calls: calls }),
    ...(!isLearned && { isLearned }),
  };
}

interface Content {
  /** Undefined when there is none: null, or parts without a text among them. */
  readonly text: string | undefined;
  readonly reasoning: string;
  readonly calls: readonly ToolCall[];
}

/** A message's content: text, or a list of parts, OpenAI's, Anthropic's (thinking) or LLaMA-Factory's v1, joined by kind. */
function readContent(fields: Fields, key: string, place: string): Content {
  const content = fields.take(key);
  if (content === undefined) return { text: undefined, reasoning: "", calls: [] };
  if (!Array.isArray(content)) return { text: text(content, place), reasoning: "", calls: [] };
  const said = { text: [] as string[], reasoning: [] as string[], calls: [] as ToolCall[] };
  for (const value of content as unknown[]) {
    const type = isRecord(value) ? value.type : value;
    const kind = typeof type === "string" && Object.hasOwn(partTypes, type) ? partTypes[type] : undefined;
    if (!isRecord(value) || kind === undefined)
      throw new RowFault(
        `${place} has a part of type ${JSON.stringify(type)?.slice(0, 60)}; expected one of ${Object.keys(partTypes).join(", ")}.`,
      );
    const part = fields.within(value, "keys of parts of messages");
    part.take("type");
    const own = ["text", "thinking", "reasoning", "value", "tool_call"].find((name) => part.has(name)) ?? "text";
    if (kind === "calls") said.calls.push(...readCalls(part.take(own), `the call in ${place}`, part));
    else said[kind].push(text(part.take(own) ?? null, `${place}, "${own}" of a part,`));
  }
  return {
    text: said.text.length > 0 ? said.text.join("") : undefined,
    reasoning: said.reasoning.join(""),
    calls: said.calls,
  };
}

/** OpenAI's `tool_calls`, or its older `function_call`. */
function callsOf(fields: Fields, place: string): ToolCall[] {
  const keys = ["tool_calls", "function_call"].filter((key) => fields.isFilled(key));
  if (keys.length > 1) throw new RowFault(`${place} has both "tool_calls" and "function_call".`);
  return keys.flatMap((key) => readCalls(fields.take(key), `"${key}" of ${place}`, fields));
}

/**
 * A turn whose text is the JSON of one call or of a list. Thoughts may stand before it, and text around `<tool_call>` tags: both stay what is
 * said. Source: LLaMA-Factory, data/formatter.py (FunctionFormatter).
 */
function callsInText(source: string, place: string, fields: Fields): { text: string; calls: ToolCall[] } {
  const tagged = [...source.matchAll(/<tool_call>(.*?)<\/tool_call>/gs)].map((match) => match[1]!);
  const thoughts = tagged.length === 0 ? (/<think>.*?<\/think>/s.exec(source)?.[0] ?? "") : "";
  const texts = tagged.length > 0 ? tagged : [source.replace(thoughts, () => "")];
  return {
    text: tagged.length > 0 ? source.replace(/<tool_call>.*?<\/tool_call>/gs, "").trim() : thoughts,
    calls: texts.flatMap((each) => readCalls(jsonIn(each, `the call in ${place}`), `the call in ${place}`, fields)),
  };
}

function readReasoning(fields: Fields, place: string): string {
  const thoughts = reasoningKeys
    .filter((key) => fields.isFilled(key))
    .map((key) => text(fields.take(key), `"${key}" of ${place}`));
  if (new Set(thoughts).size > 1) throw new RowFault(`${place} holds different thoughts under several keys.`);
  return thoughts[0] ?? "";
}

/** Whether the message is learned. Only an assistant's can be; for others the answer is no, without a notice. */
function readWeight(fields: Fields, isAssistant: boolean, place: string): boolean {
  const weights = weightKeys.flatMap((key) => {
    const value = fields.take(key);
    if (value === undefined) return [];
    if (value !== 0 && value !== 1 && typeof value !== "boolean")
      throw new RowFault(
        `"${key}" of ${place} has to be 0 or 1, or true or false, got ${kindOf(value)}: a message is learned or not, and none counts more than others.`,
      );
    return [{ key, isLearned: Boolean(value) }];
  });
  const [first, ...others] = weights;
  if (others.some(({ isLearned }) => isLearned !== first!.isLearned))
    throw new RowFault(
      `${place} is to be learned by one of ${weights.map(({ key }) => `"${key}"`).join(", ")}, and not by another.`,
    );
  if (!isAssistant && first?.isLearned)
    throw new RowFault(
      `"${first.key}" of ${place} asks for a message to be learned that is not the assistant's. \`train_on_prompt: true\` learns all of them.`,
    );
  return first?.isLearned ?? true;
}

/** In a tool's message: which function answers, and which call. */
function answeredCall(fields: Fields, place: string): Pick<Message, "name" | "tool_call_id"> {
  const [name, id] = ["name", "tool_call_id"].map((key) => {
    const value = fields.take(key);
    return value === undefined ? undefined : text(value, `"${key}" of ${place}`);
  });
  return { ...(name !== undefined && { name }), ...(id !== undefined && { tool_call_id: id }) };
}
