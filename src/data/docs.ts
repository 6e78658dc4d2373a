import { conversationColumns, questionColumns, refusedColumns } from "./formats.js";
import { labelledColumns } from "./labelled-texts.js";
import {
  contentKeys,
  partTypes,
  type Role,
  reasoningKeys,
  refusedMessageKeys,
  roleKeys,
  roleNames,
  weightKeys,
} from "./messages.js";
import { preferenceColumns } from "./preferences.js";
import { mostChars } from "./row-format.js";
import { textColumns } from "./texts.js";

/** docs/data.md: every column and key of a row with what becomes of it, made from the lists that rows are read by. */
export function dataDocs(): string {
  return `${[intro, tables, conversations(), messages(), plain, preferenceData, prompts, badRows].join("\n\n")}\n`;
}

const intro = `<!-- Made by scripts/make-data-docs.mjs from src/data/. Change it there. -->

# Data

A data set is a JSON array of rows, JSON lines, Parquet, CSV (\`.csv\`, or \`.tsv\` with tabs), or (for \`stage: pt\`) a \`.txt\` file with a text in each line, all in
UTF-8. Data on a hub is fetched first (\`hf download --repo-type dataset OWNER/NAME\`); Parquet is what hubs keep. \`dataset:\` names files, or entries of
\`dataset_info.json\` in \`dataset_dir\`, written as LLaMA-Factory writes them. \`attune data preview FILE\` (or a recipe) shows what the model sees of it, what it learns, how long
rows are, and what a run would say of its first 5000 rows.

Nothing that a row says is dropped in silence. What attune knows the meaning of is read, or the row is refused with what to do. Every other column and
key is named once, with how many rows fill it, when a run starts. Null, \`""\`, \`[]\` and \`{}\` count as absent.

Rows are read one by one: each by its own columns, whatever the first row looks like, and a file that mixes layouts is told. Where an entry of
\`dataset_info.json\` names the columns (\`columns\`, \`tags\`, \`formatting\`), these are read and the rest is named.`;

const tables = `## Tables: CSV and Parquet

The same columns as in JSON, with the same checks. In CSV the first line names them; quotation marks, line breaks inside them, blank lines and rows that end early
are read as pandas, and so Hugging Face's datasets, reads them, and an empty cell is null. Three things differ: a cell is the text that stands there (\`007\`, \`1.0\`, \`NA\`
and \`None\` stay, where pandas makes numbers and nulls of them); text behind a closing quotation mark makes a row bad; two columns of one name are an error. A row with
more cells than there are columns is bad, in pandas too.

Of Parquet all of Arrow's types are read, nested and compressed (Snappy, gzip, Brotli, Zstandard, LZ4), but for VARIANT and the encoding
DELTA_BYTE_ARRAY. A list of structs is a list of messages; dates and times are their ISO text, which datasets gives as Python objects; whole numbers beyond 2⁵³ lose
digits, and are refused as labels. What a file would unpack to is counted first: more than fits into Node's memory is refused.`;

/** What becomes of each kind of column beside the question and the answer. */
const columnMeanings: Readonly<Record<keyof typeof conversationColumns, string>> = {
  messages: "the messages (see below); the first of these that is a list",
  query: "the question's second part, behind a line break, as LLaMA-Factory's `query`; several in this order",
  system: "the system message, before all others",
  history: "earlier turns, `[[question, answer], …]`; their answers are learned too (not under `mask_history`)",
  tools: "what may be called: a list or its JSON text, of OpenAI's wrapped functions or bare ones",
  reasoning: "the thoughts before the answer (one question and answer in columns); words such as `on` are a setting, and named",
};

function conversations(): string {
  const questions = Object.entries(questionColumns).map(([question, answers]) => [
    code(question),
    `the question; with the answer in the first of ${codes(answers)} that is filled`,
  ]);
  const others = Object.entries(conversationColumns).map(([kind, names]) => [
    codes(names),
    columnMeanings[kind as keyof typeof conversationColumns],
  ]);
  return `## Conversations: stage sft

The first question and answer in this order that a row fills; other letters (\`Question\`) count too. Both may also be TRL's lists of messages: then only the
answer is learned. ShareGPT's and OpenAI's messages come before columns.

${table(["Column", "Read as"], [...questions, ...others])}

These are refused, as what they mean cannot be kept:

${table(
  ["Column", "What to do"],
  [
    [
      "`chosen` with `rejected`, `chosen_messages` with `rejected_messages`",
      "preference data: write the chosen answer as the answer",
    ],
    ["`label`, true or false", "KTO's data: keep the good rows, and drop the column"],
    ...Object.entries(refusedColumns).map(([name, advice]) => [
      code(name),
      `${advice}${/weight/.test(name) ? "; 1 is read" : ""}`,
    ]),
  ],
)}

All others (\`id\`, \`source\`, \`category\`, \`title\`, \`document\`, \`article\`, \`knowledge\`, \`topic\`, \`rationale\`, \`parallel_tool_calls\` …) are named and left.`;
}

const roleMeanings: Readonly<Record<Role, string>> = {
  system: "`system`; anywhere in the conversation, where the template takes it",
  user: "`user`",
  assistant: "`assistant`",
  tool: "`tool`: what a call gave",
  call: "`assistant`, its text the JSON of one call or a list of them, after thoughts in `<think>` or inside `<tool_call>`",
};

function messages(): string {
  const parts = Object.entries(partTypes).map(([type, kind]) => [
    code(type),
    { text: "text; several are joined", reasoning: "thoughts", calls: "a call, or its JSON text" }[kind],
  ]);
  return `### Messages

Keys of ShareGPT, OpenAI, transformers, axolotl, ms-swift and LLaMA-Factory's v1 format; they may be mixed.

${table(
  ["Key", "Read as"],
  [
    [codes(roleKeys), "the role, in any case"],
    [codes(contentKeys), "what is said: text, or a list of parts; none where a message calls tools"],
    ["`tool_calls`", "calls, OpenAI's or bare `{name, arguments}`; arguments are an object or its JSON text"],
    ["`function_call`", "OpenAI's older form of one call"],
    [codes(reasoningKeys), "in an assistant's message: its thoughts. Templates that have no place for thoughts refuse them"],
    ["`name`, `tool_call_id`", "in a tool's message: who answers what; elsewhere named and left"],
    ["`tools`", "in a system message: what may be called"],
    [
      codes(weightKeys),
      "in an assistant's message: 1 or true, learned; 0 or false, only read. Fractions are refused, and so is 1 in other messages",
    ],
  ],
)}

${table(
  ["Role", "Becomes"],
  Object.entries(roleNames).map(([role, names]) => [codes(names), roleMeanings[role as Role]]),
)}

In arguments and tools a number is what JSON means by it: \`20.0\` is written as \`20\` (Python's templates write \`20.0\`), and whole numbers beyond 2⁵³ are
refused.

Any other role is refused; \`tags\` in dataset_info.json can name it. The order of roles is the template's affair: it writes two turns of one role, or an
assistant's that comes first, or refuses them.

${table(["Type of a part", "Read as"], parts)}

Keys that are refused, and any other type of part with them (images, audio, \`tool_use\` …):

${table(
  ["Key", "What to do"],
  Object.entries(refusedMessageKeys).map(([name, advice]) => [code(name), advice]),
)}

All others (\`id\`, \`annotations\`, \`name\` of a user …) are named and left.

### What is learned

The assistant's messages: words, thoughts and calls, with the token that ends them. A message of weight 0 is read and not learned, whatever else is set:
\`mask_history: true\` leaves the last answer, if its weight is not 0; \`train_on_prompt: true\` adds all that is not the assistant's, and a message of weight 0
stays out. A row in which nothing is left to learn is bad.`;
}

const plain = `## Plain text: stage pt

A text in ${codes(textColumns)}, or the column that an entry of dataset_info.json calls \`prompt\`; all others are named and left.

## Texts with labels: stage classification

${table(
  ["Column", "Read as"],
  [
    [codes(labelledColumns.text), "the text, the first of these that is filled; behind `instruction`, a line break and `input`"],
    [codes(labelledColumns.label), "the class: text, a whole number, true or false"],
    [codes(labelledColumns.pair), "refused: a second text, without which the first means something else"],
  ],
)}

All others are named and left. A label that no row to train on has is told: nothing trains its output.`;

const prompts = `## Prompts: stages ppo, grpo, rloo

Any rows with a question: prompts alone, rows of stage sft, whose last answer is no part of the prompt, and judged answers, without them. Questions are found as above. All other
columns go to the rewards (docs/rewards.md) under their own names, null ones too; the answer that a row of stage sft gives stands under \`answer\` too, unless the row has such a column,
and that of a judged conversation under \`completion\`. A prompt that ends with an assistant's message is a bad row. Prompts longer than \`cutoff_len\` are left out and counted:
what is cut from a question is no question.`;

const preferenceData = `## Preference data

Pairs of answers for \`dpo\` and reward models, and answers judged one by one for \`kto\` and \`bco\`, which also take pairs apart. A row is as many
conversations as it has answers, each read as above; what comes before its last message is the prompt, the same for both sides of a pair.

${table(
  ["Columns", "Read as"],
  [
    [
      `${codes(preferenceColumns.chosen)} with ${codes(preferenceColumns.rejected)}, in this order`,
      "a better and a worse answer: text, a message, or a list of messages. The question stands in the other columns, before both answers, or in OpenAI's `input`",
    ],
    [`${codes(preferenceColumns.tag)}: true or false`, "whether the row's answer is good or bad"],
    [
      `${codes(preferenceColumns.verdict)}: text`,
      "beside a pair: `tie`, `both_bad` (for kto and bco two bad answers), or `a` and `b`, which change nothing",
    ],
    ["`margin`", "by how much the chosen answer is better, a number: for reward models"],
  ],
)}

Two texts without a question are split at HH-RLHF's turns (\`Human:\`, \`Assistant:\`), or at the last blank before they differ; TRL splits at the first character
that differs. All texts go through the chat template, as in LLaMA-Factory; TRL leaves plain texts without one. Rows whose answers are equal or empty, ties and rows without
a side are left out, counted and listed. Label stores (docs/labelling.md) are read as they are, without what a rater was shown a second time. Conversations that differ before their last message are bad rows.

Longer rows are cut as \`truncation\` says: \`infer_seqlen\` (LLaMA-Factory's rule: prompt and answers are cut at their ends, in proportion where both are long) or
\`keep_start\` (TRL's: what comes first stays). A row that would lose all of an answer is left out and counted.

An entry of \`dataset_info.json\` names columns with \`ranking: true\` and \`columns\`: \`chosen\`, \`rejected\`, \`kto_tag\`.`;

const badRows = `## Bad rows

A bad row ends the run before it starts, with file and line (of an array, the row's number). \`on_bad_record: skip\` leaves it out instead and says how many
were, and why the first was. Bad is every row that cannot be learned from as it stands: no JSON object, nested more than 127 deep, a key twice, not UTF-8,
half a character in what is read, a word of over 131072 characters, longer than 32 MB or than ${mostChars.conversation} characters (${mostChars.document} for stage pt); what the tables refuse; what the chat
template refuses or has no place for; a text without tokens. Rows longer than \`cutoff_len\` are cut, with a notice.

What spoils a whole file is an error: no such file, a folder, a pipe or a device, compressed or binary formats, UTF-16, an array that is not closed, more
than fits into Node's memory. A \`file_name\` in dataset_info.json may not lead out of its folder; links in the folder are followed.`;

function table(heading: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  return [line(heading), line(heading.map(() => "---")), ...rows.map(line)].join("\n");
}

function codes(names: readonly string[]): string {
  return names.map(code).join(", ");
}

function code(name: string): string {
  return `\`${name}\``;
}
