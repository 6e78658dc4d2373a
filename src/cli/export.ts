import { join } from "node:path";
import { exportTargets, numberTypes } from "../export/choices.js";
import type { ExportReport } from "../export/export.js";
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

function describe({ written, type, drift }: ExportReport, out: string, words: Words["export"]): string {
  const lines = [words.wrote(written.join(", "), type, escapeControls(out))];
  if (drift !== null) {
    const { maxLogitDifference, meanLogitDifference, divergence, positions, sameToken, lossBefore, lossAfter } = drift;
    const short = (value: number) => (value === 0 ? "0" : value.toPrecision(2));
    const exact = (loss: number) => loss.toFixed(4);
    lines.push(
      words.drift(positions, short(maxLogitDifference), short(meanLogitDifference)) +
        words.likeliest((100 * sameToken).toFixed(1), short(divergence)) +
        words.textLoss(exact(drift.textLossBefore), exact(drift.textLossAfter)),
    );
    if (lossBefore !== null) lines.push(words.heldOutLoss(exact(lossBefore), exact(lossAfter!)));
  }
  return `${lines.join("\n")}\n`;
}
