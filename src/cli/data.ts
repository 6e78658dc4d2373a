import { toolFormatNames } from "../text/tool-formats.js";
import type { AddCommand } from "./command.js";
import { choiceFor, numberFor } from "./options.js";
import { escapeControls, hasColours, hasUnicode, styleFor } from "./terminal.js";

/**
 * `attune data preview FILE`: rows as the model will see them, and the warnings that training would give for the data. The part
 * that is learned is green, or in brackets where there are no colours.
 */
export const data: AddCommand = (program, { io: { stdout, env }, words: { data: group_, program: common }, parts }) => {
  const words = group_.preview;
  const group = program
    .command("data")
    .summary(group_.summary)
    .description(group_.summary)
    .usage("preview FILE")
    .helpCommand(false);
  group
    .command("preview")
    .summary(words.summary)
    .description(words.description)
    .usage("FILE [--model MODEL]")
    .argument("<file>", words.file)
    .option("-m, --model <model>", words.model)
    .option("--template <name>", words.template)
    .option("--tool-format <name>", words.toolFormat(toolFormatNames.join(", ")), choiceFor("tool-format", toolFormatNames))
    .option("--dataset-dir <folder>", words.datasetDir, "data")
    .option("-n, --rows <count>", words.rows, numberFor("rows", { from: 1, whole: true }), 3)
    .action(async (file, { model, rows: count, ...options }) => {
      const style = styleFor(stdout, env);
      const [open, close] = hasUnicode(env) ? ["⟦", "⟧"] : ["[[", "]]"];
      const isColoured = hasColours(stdout, env);
      const learnt = (text: string) => (isColoured ? style.green(text) : `${open}${text}${close}`);

      const onNotice = (message: string) => stdout.write(`${style.dim(escapeControls(message))}\n`);
      const { rows, rowsRead, notices } = await parts.previewData(file, { ...options, model, count, onNotice });
      for (const { where, tokens, supervisedTokens, pieces } of rows) {
        const size = model === undefined ? "" : `  ${words.size(tokens, supervisedTokens)}`;
        stdout.write(`${style.bold(escapeControls(where))}${style.dim(size)}\n`);
        const text = pieces.map((piece) => (piece.supervised ? learnt : style.dim)(escapeControls(piece.text))).join("");
        stdout.write(`${text}${text.endsWith("\n") ? "" : "\n"}\n`);
      }
      for (const notice of notices) stdout.write(`${style.yellow(common.warning)} ${escapeControls(notice)}\n`);
      const mark = isColoured ? words.green : words.between(open, close);
      stdout.write(`${words.learnt(rowsRead, mark)}\n`);
      if (model === undefined) stdout.write(style.dim(`${words.inChatML}\n`));
    });
};
