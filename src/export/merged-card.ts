import { basename } from "node:path";
import { wholeModelLoading } from "../backends/native/card.js";
import { hubName, licenseOf, type ModelCard } from "../io/model-card.js";
import type { ModelFiles } from "../io/model-files.js";
import type { Recipe } from "../recipe/schema.js";
import type { Receipt } from "./receipt.js";

/** The card of a merged model: what it was merged from, what the receipt found, and how to load it. */
export async function mergedCard(receipt: Receipt, files: ModelFiles, recipe: Recipe | undefined): Promise<ModelCard> {
  const base = hubName(receipt.model) ?? hubName(String(files.config._name_or_path ?? ""));
  const license = await licenseOf(files);
  const shown = base ?? basename(receipt.model);
  const [reading] = receipt.readings;
  const rows: [string, string][] = [
    ["base model", `${shown}${license === null ? "" : `, licence ${license}`}`],
    ...(receipt.adapter === null ? [] : [["merged adapter", basename(receipt.adapter)] as [string, string]]),
    ...(recipe === undefined ? [] : [["method", recipe.finetuning_type] as [string, string]]),
    ["weights", receipt.type],
    ["receipt", `${receipt.verdict}${reading!.reasons.length > 0 ? `: ${reading!.reasons.join("; ")}` : ""}`],
    ...(reading!.answers === null || receipt.rows === null
      ? []
      : [
          ["loss on rows", `${reading!.answers.loss.toFixed(4)}, ${receipt.before.loss!.toFixed(4)} before merging`] as [
            string,
            string,
          ],
        ]),
  ];
  const cell = (text: string) => text.replaceAll("|", "\\|").replaceAll("\n", " ");
  const body = [
    `# ${cell(shown)}, ${receipt.adapter === null ? "exported" : "with a merged adapter"}`,
    "Written by attune. `export_receipt.json` says how the files were checked.",
    `| | |\n|---|---|\n${rows.map(([key, value]) => `| ${cell(key)} | ${cell(value)} |`).join("\n")}`,
    "## How to load it",
    "```sh\nnpx attune chat --model path/to/this/folder\n```",
    wholeModelLoading(false),
  ].join("\n\n");
  const tags = ["attune", "merged", ...(recipe === undefined ? [] : [recipe.finetuning_type])];
  return {
    baseModel: base,
    library: "transformers",
    pipeline: "text-generation",
    tags,
    license,
    datasets: [],
    body: `${body}\n`,
  };
}
