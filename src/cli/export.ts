import { existsSync } from "node:fs";
import { join } from "node:path";
import { AttuneError, ConfigError } from "../errors.js";
import { type ExportTarget, exportTargets, numberTypes, receiptName } from "../export/choices.js";
import type { ExportOptions, ExportReport } from "../export/export.js";
import type { RecipeExport } from "../export/export-recipe.js";
import type { Receipt } from "../export/receipt.js";
import type { AddCommand } from "./command.js";
import { choiceFor, numberFor, required } from "./options.js";
import type { Parts } from "./parts.js";
import { whileDownloading } from "./progress-bar.js";
import { readUse, readUseArgs, systemOf } from "./recipe-use.js";
import { commandLine, invocation, systemFlag } from "./shell.js";
import { escapeControls, type Io, styleFor } from "./terminal.js";
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
    .usage("[RECIPE | FOLDER] [--to FORMAT] [--out FOLDER] [--model MODEL] [--adapter FOLDER] [key=value ...]")
    .argument("[args...]")
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
    .action(async (args, flags) => {
      const asked =
        args.length > 0
          ? await askedByRecipe(args, flags)
          : { options: { ...flags, to: required("to", flags.to), out: required("out", flags.out) }, notices: [] };
      const { options } = asked;
      for (const notice of asked.notices) io.stderr.write(`${styleFor(io.stderr, io.env).dim(escapeControls(notice))}\n`);
      const report = await whileDownloading(options.model ?? download.baseModel, io, (watch) =>
        parts.exportModel({ ...options, ...watch }),
      );
      io.stdout.write(describe(report, options.out, words));
      const system = options.adapter === undefined ? undefined : await systemOfAdapter(options.adapter, parts.systemPromptOf);
      const next = nextCommand(options, report, io.env, system);
      if (next !== undefined) io.stdout.write(`${common.next}: ${escapeControls(commandLine(next))}\n`);
    });
};

type Flags = Omit<ExportOptions, "to" | "out"> & { readonly to?: ExportTarget | undefined; readonly out?: string | undefined };

/** What a recipe of LLaMA-Factory's for merging asks for, or an export of what a recipe of training has made, with the flags beside it. */
async function askedByRecipe(args: readonly string[], flags: Flags): Promise<RecipeExport> {
  const { exportOfRecipe, exportSettings } = await import("../export/export-recipe.js");
  const { parseInference } = await import("../recipe/inference.js");
  const { everyMethod } = await import("../backends/index.js");
  const use = await readUse(await readUseArgs(args), [
    { flag: "--model", key: "model_name_or_path", value: flags.model },
    { flag: "--adapter", key: "adapter_name_or_path", value: flags.adapter },
    { flag: "--template", key: "template", value: flags.template },
    { flag: "--out", key: "export_dir", value: flags.out },
  ]);
  const { file, result, settings, after } = use;
  const notices = parseInference(use.source, use.overrides, everyMethod).notices;
  const ofExports = exportSettings();
  const isTold = (notice: string) => ofExports.includes(/: (\w+) is /.exec(notice)?.[1] ?? "");
  const { to = "hf", type } = flags;
  const { infer_dtype: dtype = null } = settings;
  if (type !== undefined && dtype !== null && dtype !== "auto")
    throw new ConfigError(`--type ${type} and ${file}: infer_dtype: ${dtype} both say how weights are stored: leave one out`);
  const recipe = exportOfRecipe(
    {
      ...Object.fromEntries(Object.entries(settings).filter(([key]) => ofExports.includes(key))),
      ...(result !== undefined && { adapter_name_or_path: result.adapter ?? null, template: after.template }),
      ...(result?.model !== undefined && { model_name_or_path: result.model }),
    },
    file,
  );
  const { shardBytes, ...options } = recipe.options;
  const { model: _, adapter: __, template: ___, out: ____, ...others } = flags;
  const given = Object.fromEntries(Object.entries(others).filter(([, value]) => value !== undefined));
  const isFolder = to === "hf";
  const noShards = !isFolder && settings.export_size ? [`${file}: export_size is not needed: a GGUF file is one file`] : [];
  return {
    options: { ...options, ...(isFolder && shardBytes !== undefined && { shardBytes }), ...given, to },
    notices: result === undefined ? [...notices.filter((notice) => !isTold(notice)), ...recipe.notices, ...noShards] : noShards,
  };
}

/** The system message that an adapter was trained under, as the recipe beside it leads to its data. */
async function systemOfAdapter(adapter: string, find: Parts["systemPromptOf"]): Promise<string | undefined> {
  const path = join(adapter, "recipe.yaml");
  if (!existsSync(path)) return undefined;
  const { readRecipe } = await import("../recipe/parse.js");
  const { settingsOf } = await import("../recipe/inference.js");
  try {
    return await systemOf(settingsOf(await readRecipe(path)), find);
  } catch (error) {
    if (error instanceof AttuneError) return undefined; // the export does not depend on it
    throw error;
  }
}

/** What to type to use what was written, where attune or Ollama does. */
function nextCommand(
  { to, out }: Pick<ExportOptions, "to" | "out">,
  { written }: ExportReport,
  env: Io["env"],
  system: string | undefined,
): string[] | undefined {
  if (to === "ollama") return ["ollama", "create", "NAME", "-f", join(out, "Modelfile")];
  if (to === "gguf-lora") return undefined;
  const model = to === "hf" ? out : join(out, written.find((name) => name.endsWith(".gguf"))!);
  return [...invocation(env), "chat", "--model", model, ...systemFlag(system)];
}

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
