import { loadDataset, tokenizeDataset } from "../data/dataset.js";
import { byteChat, previewRow } from "../data/preview.js";
import { resolveModel } from "../io/resolve.js";
import { loadTokenizer } from "../text/load-tokenizer.js";
import type { ChatFormat } from "../text/supervised.js";
import { chooseTemplate, type TemplateChoice } from "../text/templates.js";
import { toolFormatNames } from "../text/tool-formats.js";
import { choiceOption, numberOption } from "./options.js";
import { escapeControls, hasColours, hasUnicode, type Io, styleFor } from "./terminal.js";

const rowsLookedAt = 1000;

/**
 * `attune data preview FILE`: rows as the model will see them, and what training would say of the data, of its first rows at least. Without
 * colours, what is learnt stands in brackets.
 * Throws DataError for data that cannot be read; a row that cannot be used is only reported.
 */
export async function previewData(file: string, options: Record<string, string>, { stdout, env }: Io): Promise<number> {
  const style = styleFor(stdout, env);
  const [open, close] = hasUnicode(env) ? ["⟦", "⟧"] : ["[[", "]]"];
  const isColoured = hasColours(stdout, env);
  const learnt = (text: string) => (isColoured ? style.green(text) : `${open}${text}${close}`);
  const rows = numberOption("rows", options.rows ?? "", { from: 1, whole: true });
  const { model, template: name, datasetDir = "data" } = options;
  const toolFormat =
    options.toolFormat === undefined ? undefined : choiceOption("tool-format", options.toolFormat, toolFormatNames);

  const chat =
    model === undefined
      ? byteChat()
      : await chatOf(model, { name, toolFormat }, (message) => stdout.write(`${style.dim(message)}\n`));
  const { conversations, rowsRead, notices } = await loadDataset({ dataset: [file], datasetDir, onBadRow: "skip" });
  const looked = conversations.slice(0, Math.max(rows, rowsLookedAt));
  const { examples, report } = await tokenizeDataset(looked, chat, { cutoffLen: Number.MAX_SAFE_INTEGER, onBadRow: "skip" });
  for (const example of examples.slice(0, rows)) {
    const { where, tokens, supervisedTokens, pieces } = previewRow(example, chat.tokenizer);
    const size = model === undefined ? "" : `  ${tokens} tokens, ${supervisedTokens} of them learnt`;
    stdout.write(`${style.bold(escapeControls(where))}${style.dim(size)}\n`);
    const text = pieces.map((piece) => (piece.supervised ? learnt : style.dim)(escapeControls(piece.text))).join("");
    stdout.write(`${text}${text.endsWith("\n") ? "" : "\n"}\n`);
  }
  for (const notice of [...notices, ...report.notices]) stdout.write(`${style.yellow("warning:")} ${escapeControls(notice)}\n`);
  stdout.write(
    `${rowsRead} rows. The model learns to write what is ${isColoured ? style.green("green") : `in ${open} ${close}`}; the rest is given to it.\n`,
  );
  if (model === undefined) stdout.write(style.dim("Shown in ChatML; with --model MODEL, as that model writes chats.\n"));
  return 0;
}

async function chatOf(model: string, choice: TemplateChoice, onNotice: (message: string) => void): Promise<ChatFormat> {
  const tokenizer = await loadTokenizer(await resolveModel(model, { onNotice }));
  const { template, notices } = chooseTemplate(tokenizer, choice);
  for (const notice of notices) onNotice(notice);
  return { tokenizer, template };
}
