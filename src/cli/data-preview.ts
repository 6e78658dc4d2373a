import { numberOption, requiredOption } from "./options.js";
import type { Parts } from "./parts.js";
import { escapeControls, type Io, styleFor } from "./terminal.js";

/** `attune data preview FILE`: rows as the model will see them. Without colours, what is learnt stands between ⟦ and ⟧. */
export async function previewRows(
  file: string,
  options: Record<string, string>,
  parts: Parts,
  { stdout, env }: Io,
): Promise<number> {
  const style = styleFor(stdout, env);
  const hasColours = style.green("") !== "";
  const learnt = (text: string) => (hasColours ? style.green(text) : `⟦${text}⟧`);
  const rows = numberOption("rows", options.rows ?? "", { from: 1, whole: true });
  const model = requiredOption("model", options.model);
  const { template } = options;

  for await (const row of parts.previewData({ file, model, rows, ...(template === undefined ? {} : { template }) })) {
    const share = `${row.tokens} tokens, ${row.supervisedTokens} of them learnt`;
    stdout.write(`${style.bold(escapeControls(row.where))}${style.dim(`  ${share}`)}\n`);
    const text = row.pieces.map((piece) => (piece.supervised ? learnt : style.dim)(escapeControls(piece.text))).join("");
    stdout.write(`${text}${text.endsWith("\n") ? "" : "\n"}\n`);
  }
  stdout.write(
    `The model learns to write what is ${hasColours ? style.green("green") : "between ⟦ and ⟧"}; the rest is given to it.\n`,
  );
  return 0;
}
