import { join } from "node:path";
import { exportTargets, numberTypes } from "../export/choices.js";
import type { ExportReport } from "../export/export.js";
import { choiceOption, numberOption, requiredOption } from "./options.js";
import type { Parts } from "./parts.js";
import { ProgressBar } from "./progress-bar.js";
import { escapeControls, type Io, styleFor } from "./terminal.js";

/** `attune export`: a model, or an adapter, for other programs. */
export async function exportCommand(options: Record<string, string>, parts: Parts, io: Io): Promise<number> {
  const { model, adapter, type, data, maxDrift, template, ollamaFrom } = options;
  const to = choiceOption("to", requiredOption("to", options.to), exportTargets);
  const out = requiredOption("out", options.out);
  const bar = new ProgressBar(io);
  const report = await parts.exportModel({
    ...{ model, adapter, to, out, data, template, ollamaFrom },
    type: type === undefined ? undefined : choiceOption("type", type.toLowerCase(), numberTypes),
    maxDrift: maxDrift === undefined ? undefined : numberOption("max-drift", maxDrift, { from: 0 }),
    onNotice: (message) => io.stderr.write(`${styleFor(io.stderr, io.env).dim(escapeControls(message))}\n`),
    onProgress: (doneBytes, totalBytes) => bar.showBytes(`downloading ${model ?? "the base model"}`, doneBytes, totalBytes),
  });
  bar.clear();
  io.stdout.write(describe(report, out));
  if (to === "ollama") io.stdout.write(`Next: ollama create NAME -f ${join(out, "Modelfile")}\n`);
  return 0;
}

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
