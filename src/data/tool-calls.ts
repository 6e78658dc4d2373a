import type { Tool, ToolCall } from "../text/chat-template.js";
import { type Fields, isRecord, jsonIn, kindOf, RowFault, text } from "./row-format.js";

/**
 * What a model may call, as a `tools` column has it: a list, or its JSON text, of function schemas, wrapped as OpenAI's API has them
 * (`{"type": "function", "function": {…}}`), bare, or each a JSON text of its own. They come out wrapped. Throws RowFault.
 */
export function readTools(value: unknown, place: string): Tool[] {
  const tools = typeof value === "string" ? (value.trim() === "" ? [] : jsonIn(value, place)) : value;
  const list = Array.isArray(tools) ? tools : [tools];
  return list.map((each: unknown, index) => readTool(each, list.length === 1 ? place : `${place}, item ${index + 1},`));
}

function readTool(value: unknown, place: string): Tool {
  const tool = typeof value === "string" ? jsonIn(value, place) : value;
  if (!isRecord(tool)) throw new RowFault(`${place} has to describe a function, got ${kindOf(tool)}.`);
  if (tool.type !== undefined && tool.type !== "function" && !("name" in tool && "parameters" in tool))
    throw new RowFault(`${place} is a tool of type ${JSON.stringify(tool.type)?.slice(0, 60)}; only functions are supported.`);
  const schema = "function" in tool ? tool.function : tool;
  if (!isRecord(schema) || typeof schema.name !== "string" || schema.name === "")
    throw new RowFault(`${place} has no name: expected {"name": …, "description": …, "parameters": …}.`);
  checkExact(tool, place);
  return schema === tool ? { type: "function", function: schema } : { type: "function", ...tool };
}

/**
 * Calls: one or a list of them, or the JSON text of either; each as OpenAI's API has it (`{"id", "type", "function": {"name", "arguments"}}`)
 * or bare (`{"name", "arguments"}`). `fields` is where they stand. Throws RowFault.
 */
export function readCalls(value: unknown, place: string, fields: Fields): ToolCall[] {
  const calls = typeof value === "string" ? jsonIn(value, place) : value;
  const list = Array.isArray(calls) ? calls : [calls];
  if (list.length === 0) throw new RowFault(`${place} holds no call.`);
  return list.map((each: unknown, index) => readCall(each, list.length === 1 ? place : `${place}, item ${index + 1},`, fields));
}

function readCall(value: unknown, place: string, fields: Fields): ToolCall {
  const call = typeof value === "string" ? jsonIn(value, place) : value;
  if (!isRecord(call)) throw new RowFault(`${place} has to be {"name": …, "arguments": …}, got ${kindOf(call)}.`);
  const outer = fields.within(call, "keys of tool calls");
  const type = outer.take("type");
  const isWrapped = isRecord(call.function);
  if (type !== undefined && type !== "function")
    throw new RowFault(`${place} is a call of type ${JSON.stringify(type)?.slice(0, 60)}; only functions are supported.`);
  const id = outer.take("id");
  const inner = isWrapped ? outer.within(outer.take("function") as Record<string, unknown>, "keys of tool calls") : outer;
  const name = inner.take("name");
  if (typeof name !== "string" || name === "") throw new RowFault(`${place} names no function.`);
  return {
    ...(id !== undefined && { id: text(id, `the id of ${place}`) }),
    type: "function",
    function: { name: text(name, `the name in ${place}`), arguments: readArguments(inner, place) },
  };
}

/** An object, or its JSON text; Llama's models call it `parameters`. */
function readArguments(call: Fields, place: string): Record<string, unknown> {
  const key = call.find(["arguments", "parameters"]);
  const value = key === undefined ? undefined : call.take(key);
  const parsed = typeof value === "string" && value.trim() !== "" ? jsonIn(value, `"${key}" of ${place}`) : value;
  if (parsed === undefined || parsed === "") return {};
  if (!isRecord(parsed)) throw new RowFault(`"${key}" of ${place} has to be an object, got ${kindOf(parsed)}.`);
  checkExact(parsed, place);
  return parsed;
}

/** Throws RowFault for what templates would not write as it stands: half characters, and whole numbers of which a double loses digits. */
function checkExact(value: unknown, place: string): void {
  if (typeof value === "string") text(value, place);
  if (typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value))
    throw new RowFault(`${place} holds the number ${value}, which is too large to be read exactly; write it as text.`);
  if (typeof value !== "object" || value === null) return;
  for (const [key, item] of Object.entries(value)) {
    text(key, `a key in ${place}`);
    checkExact(item, place);
  }
}
