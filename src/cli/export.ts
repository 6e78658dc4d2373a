import { join } from "node:path";
import { exportTargets, numberTypes, receiptName } from "../export/choices.js";
import type { ExportReport } from "../export/export.js";
import type { Receipt } from "../export/receipt.js";
import type { AddCommand } from "./command.js";
import { choiceFor, numberFor, required } from "./options.js";
import { whileDownloading } from "./progress-bar.js";
import { commandLine } from "./shell.js";
import { escapeControls } from "./terminal.js";
import type { Words } from "./words/index.js";

/** `attune export`: a model, or an adapter, for other programs. */
export const exportCommand: AddCommand = (
  program,
  { io, words: { export: words, options: shared, download, program: common }, parts },
) => {
  program
    .command("export")
    .summary(words.summary)
    .description(words.description)
    .usage("--to FORMAT --out FOLDER [--model MODEL] [--adapter FOLDER]")
    .option("--to <format>", words.to(exportTargets.join(", ")), choiceFor("to", exportTargets))
    .option("-o, --out <folder>", words.out)
    .option("-m, --model <model>", words.model)
    .option("-a, --adapter <folder>", words.adapter)
    .option("--type <type>", words.type(numberTypes.join(", ")), choiceFor("type", numberTypes))
    .option("-d, --data <file>", words.data)
    .option("--check-rows <count>", words.checkRows, numberFor("check-rows", { from: 0, to: 10_000, whole: true }))
    .option("--force", words.force)
    .option("--max-drift <number>", words.maxDrift, numberFor("max-drift", { from: 0 }))
    .option("--template <name>", shared.template)
    .option("--ollama-from <model>", words.ollamaFrom)
    .addHelpText("after", words.examples)
    .action(async (options) => {
      const to = required("to", options.to);
      const out = required("out", options.out);
      const report = await whileDownloading(options.model ?? download.baseModel, io, (watch) =>
        parts.exportModel({ ...options, to, out, ...watch }),
      );
      io.stdout.write(describe(report, out, words));
      if (to === "ollama")
        io.stdout.write(`${common.next}: ${commandLine(["ollama", "create", "NAME", "-f", join(out, "Modelfile")])}\n`);
    });
};

function describe({ written, type, drift, receipt }: ExportReport, out: string, words: Words["export"]): string {
  const lines = [words.wrote(written.join(", "), type, escapeControls(out))];
  if (drift !== null) {
    const { maxLogitDifference, meanLogitDifference, divergence, positions, sameToken } = drift;
    const short = (value: number) => (value === 0 ? "0" : value.toPrecision(2));
    const exact = (loss: number) => loss.toFixed(4);
    lines.push(
      words.drift(positions, short(maxLogitDifference), short(meanLogitDifference)) +
        words.likeliest((100 * sameToken).toFixed(1), short(divergence)) +
        words.textLoss(exact(drift.textLossBefore), exact(drift.textLossAfter)),
    );
  }
  if (receipt !== null) lines.push(...receiptLines(receipt, out, words));
  return `${lines.join("\n")}\n`;
}

function receiptLines({ rows, before, readings, advice }: Receipt, out: string, words: Words["export"]): string[] {
  const lines =
    rows === null ? [words.unchecked] : [words.checkedWith(rows.source, rows.loss, escapeControls(rows.from.join(", ")))];
  const rightOf = (right: number | null) => (right === null || rows === null ? null : `${right} / ${rows.answers}`);
  if (before.loss !== null) lines.push(words.before(before.loss.toFixed(4), rightOf(before.right)));
  for (const { program, arithmetic, answers, verdict, reasons } of readings) {
    if (answers !== null)
      lines.push(
        words.reading(program, arithmetic, answers.loss.toFixed(4), rightOf(answers.right), (100 * answers.changed).toFixed(0)),
      );
    lines.push(
      ...(verdict === "pass" && answers === null
        ? []
        : [`    ${words.verdict[verdict]}${reasons.length > 0 ? `: ${reasons.join("; ")}` : ""}`]),
    );
  }
  return [...lines, ...advice.map((one) => `  ${one}`), words.receiptAt(escapeControls(join(out, receiptName)))];
}
