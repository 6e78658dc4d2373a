import type { Dialogue } from "../text/chat-template.js";
import { conversationColumns, conversations, type Layout, questionColumns } from "./formats.js";
import { Fields, isRecord, kindOf, names, RowFault, type RowFormat, text } from "./row-format.js";

/** Answers to one question, with what somebody thought of each: a better and a worse one, or one that is good or bad. */
export interface Preference {
  readonly answers: readonly JudgedAnswer[];
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

const tagColumns = ["kto_tag", "label"];

/** Whether a row holds judged answers. */
export function isPreference(row: Fields): boolean {
  return (row.has("chosen") && row.has("rejected")) || tagOf(row) !== undefined;
}

function tagOf(row: Fields): string | undefined {
  const isAnswer = row.findAll([...conversationColumns.messages, ...Object.values(questionColumns).flat()]).length > 0;
  return isAnswer ? tagColumns.find((name) => typeof row.peek(name) === "boolean") : undefined;
}

/**
 * Rows of judged answers: LLaMA-Factory's in Alpaca's and ShareGPT's form (`ranking`, `kto_tag`), and TRL's with and without `prompt`. A row becomes as many
 * conversations as it has answers, each read as rows of stage sft are.
 * Source: LLaMA-Factory 0.9.5, data/converter.py; TRL 1.16, "Dataset formats and types".
 */
export const preferences: RowFormat<Preference, PreferenceLayout> = {
  layoutOfEntry({ ranking: _, columns, ...entry }, where) {
    const known = isRecord(columns) ? columns : {};
    const { chosen = null, rejected = null, kto_tag = null, ...others } = known;
    const named = names({ chosen, rejected, kto_tag }, "columns", ["chosen", "rejected", "kto_tag"], where);
    const rest = conversations.layoutOfEntry({ ...entry, ...(columns === undefined ? {} : { columns: others }) }, where);
    return { chosen: named.chosen ?? "chosen", rejected: named.rejected ?? "rejected", tag: named.kto_tag, rest };
  },

  read(row, layout, tally) {
    const { chosen, rejected, tag, rest } = layout ?? {
      chosen: "chosen",
      rejected: "rejected",
      tag: tagOf(row),
      rest: undefined,
    };
    const others = Object.fromEntries(row.keys.map((key) => [key, row.peek(key)]));
    for (const key of row.keys) row.take(key);
    const read = (fields: Fields, judgement: JudgedAnswer["judgement"]): JudgedAnswer => ({
      ...conversations.read(fields, rest, tally),
      judgement,
    });
    if (tag !== undefined) {
      const isGood = others[tag];
      if (typeof isGood !== "boolean") throw new RowFault(`"${tag}" has to be true or false, got ${kindOf(isGood ?? null)}.`);
      delete others[tag];
      return { answers: [read(row.within(others, "columns"), isGood ? "good" : "bad")] };
    }
    const answers = [others[chosen], others[rejected]];
    delete others[chosen];
    delete others[rejected];
    const [better, worse] = answers.map((answer, i) => withAnswer(others, answer ?? null, i === 0 ? chosen : rejected, rest));
    // Columns that nobody reads are told once, not for each answer.
    return { answers: [read(row.within(better!, "columns"), "chosen"), read(new Fields(worse!, "columns"), "rejected")] };
  },
};

/** The row of stage sft that an answer makes of the rest of its row. */
function withAnswer(
  row: Readonly<Record<string, unknown>>,
  answer: unknown,
  name: string,
  layout: Layout | undefined,
): Record<string, unknown> {
  const fields = new Fields(row, "columns");
  const asMessages = Array.isArray(answer)
    ? answer
    : [isRecord(answer) ? answer : { role: "assistant", content: text(answer, `"${name}"`) }];
  const messages = layout?.kind === "chat" ? layout.messages : fields.find(conversationColumns.messages);
  if (messages !== undefined && layout?.kind !== "alpaca") {
    const before = row[messages];
    if (!Array.isArray(before)) throw new RowFault(`"${messages}" has to be a list of messages, got ${kindOf(before ?? null)}.`);
    return { ...row, [messages]: [...before, ...asMessages] };
  }
  if (layout !== undefined && layout.kind === "alpaca") return { ...row, [layout.response]: answer };
  const question = Object.keys(questionColumns).find((column) => fields.findAll([column]).length > 0);
  if (question !== undefined) return { ...row, [questionColumns[question]![0]!]: answer };
  if (Array.isArray(answer)) return { ...row, messages: answer }; // the question stands in both answers
  throw new RowFault(`the rows hold "${name}" and no question: expected a column such as prompt, instruction or messages.`);
}
