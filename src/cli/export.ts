import { join } from "node:path";
import { exportTargets, numberTypes } from "../export/choices.js";
import type { ExportReport } from "../export/export.js";
import type { AddCommand } from "./command.js";
import { choiceFor, numberFor, required } from "./options.js";
import { whileDownloading } from "./progress-bar.js";
import { escapeControls } from "./terminal.js";

/** `attune export`: a model, or an adapter, for other programs. */
export const exportCommand: AddCommand = (program, { io, parts }) => {
  program
    .command("export")
    .summary("take a model to other programs: Hugging Face, GGUF, Ollama")
    .description("Merge an adapter into its base and write the model for other programs, or write the adapter alone.")
    .usage("--to FORMAT --out FOLDER [--model MODEL] [--adapter FOLDER]")
    .option("--to <format>", `one of ${exportTargets.join(", ")}`, choiceFor("to", exportTargets))
    .option("-o, --out <folder>", "where to write; must be new or empty")
    .option("-m, --model <model>", "a folder, a GGUF file, or a name on the hub; default: the base that the adapter names")
    .option("-a, --adapter <folder>", "the output_dir of a run, or any adapter that chat takes")
    .option(
      "--type <type>",
      `how weights are stored: ${numberTypes.join(", ")}; default: bf16 for hf, q8_0 for gguf and ollama`,
      choiceFor("type", numberTypes),
    )
    .option("-d, --data <file>", "held-out rows: compare the loss before and after")
    .option(
      "--max-drift <number>",
      "write nothing if a logit changes by more; default: what rounding to the type explains",
      numberFor("max-drift", { from: 0 }),
    )
    .option("--template <name>", "another chat template than the adapter's or the model's own")
    .option("--ollama-from <model>", "for ollama: write the adapter alone, on top of this model of Ollama's or GGUF file")
    .addHelpText(
      "after",
      `
Formats:
  hf         a folder that transformers, vLLM and others load
  gguf       model.gguf for llama.cpp, Ollama, LM Studio and others
  gguf-lora  adapter.gguf, a LoRA for llama.cpp to put on top of the base's GGUF file
  ollama     model.gguf with a Modelfile: ollama create NAME -f FOLDER/Modelfile

Examples:
  attune export --adapter runs/orders --to gguf --type q4_k_m --out exported
  attune export --adapter runs/orders --to hf --data held-out.jsonl --out exported
  attune export --adapter runs/orders --to ollama --ollama-from smollm2:135m --out exported`,
    )
    .action(async (options) => {
      const to = required("to", options.to);
      const out = required("out", options.out);
      const report = await whileDownloading(options.model ?? "the base model", io, (watch) =>
        parts.exportModel({ ...options, to, out, ...watch }),
      );
      io.stdout.write(describe(report, out));
      if (to === "ollama") io.stdout.write(`Next: ollama create NAME -f ${join(out, "Modelfile")}\n`);
    });
};

function describe({ written, type, drift }: ExportReport, out: string): string {
  const lines = [`Wrote ${written.join(", ")}${type === null ? "" : ` in ${type}`} to ${escapeControls(out)}`];
  if (drift !== null) {
    const { maxLogitDifference, meanLogitDifference, divergence, positions, sameToken, lossBefore, lossAfter } = drift;
    const short = (value: number) => (value === 0 ? "0" : value.toPrecision(2));
    lines.push(
      `Drift, measured on what was written, at ${positions} positions of text: a logit changes by at most ${short(maxLogitDifference)}, by ` +
        `${short(meanLogitDifference)} in the mean; the likeliest token stays at ${(100 * sameToken).toFixed(1)} %; ` +
        `KL divergence ${short(divergence)}; loss ${drift.textLossBefore.toFixed(4)} before, ${drift.textLossAfter.toFixed(4)} after`,
    );
    if (lossBefore !== null) lines.push(`Held-out loss: ${lossBefore.toFixed(4)} before, ${lossAfter!.toFixed(4)} after`);
  }
  return `${lines.join("\n")}\n`;
}
