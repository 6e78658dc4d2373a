import { parseStrictJson, toPlainJson } from "../io/strict-json.js";
import type { RewardSample } from "./reward.js";

/** A text with values of rows and answers in it. */
export interface Template {
  /** Columns that it names. */
  readonly columns: readonly string[];
  /** The text for an answer; null where its row lacks what is named. */
  render(sample: RewardSample): string | null;
}

/** What a rule compares with where nothing else is said: the answer that the row gives. */
export const rowsAnswer = "{{ item.answer }}";

/** Where an item leads: into the row, or into the answer. */
type Path = readonly [space: "item" | "sample", ...keys: string[]];

/**
 * OpenAI's templates: `{{ item.column }}` is a column of the row, `{{ sample.output_text }}` the answer, `{{ sample.output_json.key }}` what stands in it as
 * JSON; below them keys and indices lead on, as in `item.labels[0].name`. Text stays as it is, other values become JSON. What is not in an answer is
 * empty: that is the answer's fault, and the row's where a column is missing.
 * Source: OpenAI, "Graders", templating. Throws SyntaxError for a text that is no template.
 */
export function parseTemplate(source: string): Template {
  const parts: (string | Path)[] = [];
  let at = 0;
  for (let open = source.indexOf("{{"); open >= 0; open = source.indexOf("{{", at)) {
    const close = source.indexOf("}}", open);
    if (close < 0) throw new SyntaxError(`"{{" at character ${open + 1} has no "}}"`);
    parts.push(source.slice(at, open), pathOf(source.slice(open + 2, close).trim()));
    at = close + 2;
  }
  parts.push(source.slice(at));
  return {
    columns: parts.flatMap((part) => (typeof part !== "string" && part[0] === "item" ? [part[1]!] : [])),
    render(sample) {
      let text = "";
      for (const part of parts) {
        const value = typeof part === "string" ? part : valueAt(part, sample);
        if (value === null) return null;
        text += value;
      }
      return text;
    },
  };
}

function pathOf(text: string): Path {
  const match = /^(item|sample)((?:\.[\p{L}\p{N}_-]+|\[\d+\]|\["[^"]*"\])+)$/u.exec(text);
  if (match === null)
    throw new SyntaxError(`"{{ ${text} }}" is not known: expected {{ item.column }} or {{ sample.output_text }}`);
  const keys = [...match[2]!.matchAll(/\.([^.[]+)|\[(\d+)\]|\["([^"]*)"\]/gu)].map(
    ([, name, index, quoted]) => name ?? index ?? quoted!,
  );
  const space = match[1] as Path[0];
  if (space === "sample" && !(keys[0] === "output_text" && keys.length === 1) && keys[0] !== "output_json")
    throw new SyntaxError(`"{{ ${text} }}" is not known: of an answer there are sample.output_text and sample.output_json`);
  return [space, ...keys];
}

function valueAt([space, first, ...keys]: Path, { columns, answer }: RewardSample): string | null {
  if (first === "output_text" && space === "sample") return answer;
  const missing = space === "item" ? null : "";
  let value: unknown = space === "item" ? (Object.hasOwn(columns, first!) ? columns[first!] : null) : jsonOf(answer);
  for (const key of keys)
    value =
      typeof value === "object" && value !== null && Object.hasOwn(value, key) ? (value as Record<string, unknown>)[key] : null;
  if (value === null || value === undefined) return missing;
  return typeof value === "string" ? value : (JSON.stringify(value) ?? missing);
}

/** A text as JSON; undefined where it is none, and for what JSON should not be: keys twice, nested over 127 deep. */
export function jsonOf(text: string): unknown {
  try {
    return toPlainJson(parseStrictJson(text.trim()));
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}
