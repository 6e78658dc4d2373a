import type { TemplateDialogue, TemplateMessage, Tool, ToolCall } from "./chat-template.js";
import { strip } from "./jinja/methods.js";

/** A text of a chat that must be found again in the rendering. */
export interface Part {
  /** Index of the message; undefined for a tool that is offered. */
  readonly message: number | undefined;
  readonly kind: "content" | "thoughts" | "call" | "tool";
  readonly text: string;
  /** Names and numbers of a call's arguments get no marks: templates do not write them as they write texts. */
  readonly isUnmarked?: true;
}

/** Where a part stands in a text. */
export interface Place {
  readonly part: number;
  readonly from: number;
  readonly to: number;
}

export interface MarkedChat {
  readonly dialogue: TemplateDialogue;
  readonly parts: readonly Part[];
}

/**
 * Puts marks around every text of a chat, so that one rendering shows where each went. Blanks around a text stay outside of its marks, and
 * thoughts are marked apart from the answer behind them: templates trim the first and cut out the second. Marks are numbers between
 * noncharacters, which must not occur in the chat (Shield hides them).
 */
export function markChat({ messages, tools }: TemplateDialogue): MarkedChat {
  const parts: Part[] = [];
  const mark = (text: string, kind: Part["kind"], message?: number): string => {
    const core = strip(text, null, "both");
    if (core === "") return text;
    const part = parts.push({ message, kind, text: core }) - 1;
    const from = text.indexOf(core);
    return `${text.slice(0, from)}\uFDD2${2 * part}\uFDD3${core}\uFDD2${2 * part + 1}\uFDD3${text.slice(from + core.length)}`;
  };
  const markIn = (value: unknown, message: number): unknown => {
    if (typeof value === "string") return mark(value, "call", message);
    if (typeof value === "number") parts.push({ message, kind: "call", text: String(value), isUnmarked: true });
    if (Array.isArray(value)) return value.map((item) => markIn(item, message));
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => {
        parts.push({ message, kind: "call", text: key, isUnmarked: true });
        return [key, markIn(item, message)];
      }),
    );
  };
  const markCall = (call: ToolCall, message: number): ToolCall => ({
    ...call,
    function: {
      name: mark(call.function.name, "call", message),
      arguments: markIn(call.function.arguments, message) as ToolCall["function"]["arguments"],
    },
  });
  const markAnswer = (content: string, message: number): string => {
    const pieces = content.split("</think>");
    return pieces
      .map((piece, i) => {
        if (i === pieces.length - 1) return mark(piece, "content", message);
        const open = /^\s*<think>/.exec(piece)?.[0] ?? "";
        return open + mark(piece.slice(open.length), "thoughts", message);
      })
      .join("</think>");
  };
  const markMessage = (message: TemplateMessage, index: number): TemplateMessage => ({
    ...message,
    ...(typeof message.content !== "string"
      ? {}
      : { content: message.role === "assistant" ? markAnswer(message.content, index) : mark(message.content, "content", index) }),
    ...(message.reasoning_content === undefined ? {} : { reasoning_content: mark(message.reasoning_content, "thoughts", index) }),
    ...(message.tool_calls === undefined ? {} : { tool_calls: message.tool_calls.map((call) => markCall(call, index)) }),
  });
  const marked = messages.map(markMessage);
  return { dialogue: { messages: marked, ...(tools === undefined ? {} : { tools: tools.map(markTool) }) }, parts };

  function markTool(tool: Tool): Tool {
    const { function: inner } = tool as { function?: unknown };
    const named = (object: object) =>
      Object.fromEntries(
        Object.entries(object).map(([key, value]) => [
          key,
          key === "name" && typeof value === "string" ? mark(value, "tool") : value,
        ]),
      );
    return typeof inner === "object" && inner !== null ? { ...tool, function: named(inner) } : named(tool);
  }
}

/** Takes the marks out of a rendering, and says where the parts of the chat stand in what is left. Parts that it cuts in two are not there. */
export function readMarks(marked: string): { readonly text: string; readonly places: readonly Place[] } {
  const places: Place[] = [];
  const opened = new Map<number, number>();
  let text = "";
  let end = 0;
  for (const match of marked.matchAll(/\uFDD2(\d+)\uFDD3/g)) {
    text += marked.slice(end, match.index);
    end = match.index + match[0].length;
    const number = Number(match[1]);
    const part = number >> 1;
    if (number % 2 === 0) opened.set(part, text.length);
    else if (opened.has(part)) {
      places.push({ part, from: opened.get(part)!, to: text.length });
      opened.delete(part);
    }
  }
  return { text: text + marked.slice(end), places };
}
