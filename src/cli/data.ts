import { toolFormatNames } from "../text/tool-formats.js";
import type { AddCommand } from "./command.js";
import { choiceFor, numberFor } from "./options.js";
import { escapeControls, hasColours, hasUnicode, styleFor } from "./terminal.js";

/**
 * `attune data preview FILE`: rows as the model will see them, and the warnings that training would give for the data. The part
 * that is learned is green, or in brackets where there are no colours.
 */
export const data: AddCommand = (program, { io: { stdout, env }, parts }) => {
  const group = program
    .command("data")
    .summary("look at training data")
    .description("Look at training data.")
    .usage("preview FILE")
    .helpCommand(false);
  group
    .command("preview")
    .summary("rows as the model will see them")
    .description("Print rows as the model will see them, the part it learns from in colour.")
    .usage("FILE [--model MODEL]")
    .argument("<file>", "JSON or JSONL, or a name in dataset_info.json")
    .option("-m, --model <model>", "whose tokenizer and chat template to use; without one, ChatML")
    .option("--template <name>", "another chat template than the model's own")
    .option(
      "--tool-format <name>",
      `how tools and calls are written where the chat template has no place for them: ${toolFormatNames.join(", ")}`,
      choiceFor("tool-format", toolFormatNames),
    )
    .option("--dataset-dir <folder>", "where dataset_info.json is", "data")
    .option("-n, --rows <count>", "how many rows", numberFor("rows", { from: 1, whole: true }), 3)
    .action(async (file, { model, rows: count, ...options }) => {
      const style = styleFor(stdout, env);
      const [open, close] = hasUnicode(env) ? ["⟦", "⟧"] : ["[[", "]]"];
      const isColoured = hasColours(stdout, env);
      const learnt = (text: string) => (isColoured ? style.green(text) : `${open}${text}${close}`);

      const onNotice = (message: string) => stdout.write(`${style.dim(escapeControls(message))}\n`);
      const { rows, rowsRead, notices } = await parts.previewData(file, { ...options, model, count, onNotice });
      for (const { where, tokens, supervisedTokens, pieces } of rows) {
        const size = model === undefined ? "" : `  ${tokens} tokens, ${supervisedTokens} of them learnt`;
        stdout.write(`${style.bold(escapeControls(where))}${style.dim(size)}\n`);
        const text = pieces.map((piece) => (piece.supervised ? learnt : style.dim)(escapeControls(piece.text))).join("");
        stdout.write(`${text}${text.endsWith("\n") ? "" : "\n"}\n`);
      }
      for (const notice of notices) stdout.write(`${style.yellow("warning:")} ${escapeControls(notice)}\n`);
      const mark = isColoured ? "green" : `in ${open} ${close}`;
      stdout.write(`${rowsRead} rows. The model learns to write what is ${mark}; the rest is given to it.\n`);
      if (model === undefined) stdout.write(style.dim("Shown in ChatML; with --model MODEL, as that model writes chats.\n"));
    });
};
