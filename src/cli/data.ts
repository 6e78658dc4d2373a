import { ConfigError } from "../errors.js";
import type { Pipeline, Stage } from "../recipe/pipeline.js";
import { toolFormatNames } from "../text/tool-formats.js";
import type { AddCommand } from "./command.js";
import { choiceFor, numberFor } from "./options.js";
import { escapeControls, hasColours, hasUnicode, styleFor } from "./terminal.js";

/**
 * `attune data preview FILE` or `RECIPE`: rows as the model will see them, and the warnings that training would give for the data. The part
 * that is learned is green, or in brackets where there are no colours.
 */
export const data: AddCommand = (program, { io: { stdout, env }, words: { data: group_, program: common }, parts }) => {
  const words = group_.preview;
  const group = program
    .command("data")
    .summary(group_.summary)
    .description(group_.summary)
    .usage("preview FILE|RECIPE")
    .helpCommand(false);
  group
    .command("preview")
    .summary(words.summary)
    .description(words.description)
    .usage("FILE|RECIPE [--model MODEL]")
    .argument("<file>", words.file)
    .option("--stage <name>", words.stage)
    .option("-m, --model <model>", words.model)
    .option("--template <name>", words.template)
    .option("--tool-format <name>", words.toolFormat(toolFormatNames.join(", ")), choiceFor("tool-format", toolFormatNames))
    .option("--dataset-dir <folder>", words.datasetDir)
    .option("--cutoff-len <tokens>", words.cutoffLen, numberFor("cutoff-len", { from: 2, whole: true }))
    .option("-n, --rows <count>", words.rows, numberFor("rows", { from: 1, whole: true }), 3)
    .action(async (file, { rows: count, ...given }) => {
      const style = styleFor(stdout, env);
      const [open, close] = hasUnicode(env) ? ["⟦", "⟧"] : ["[[", "]]"];
      const isColoured = hasColours(stdout, env);
      const learnt = (text: string) => (isColoured ? style.green(text) : `${open}${text}${close}`);

      const isRecipe = /\.ya?ml$/i.test(file);
      const ofRecipe = isRecipe ? await settingsOf(file, given.stage) : { dataset: [file], datasetDir: "data", cutoffLen: 2048 };
      const options = { ...ofRecipe, ...given, ...("stage" in ofRecipe && { stage: ofRecipe.stage }) };
      const onNotice = (message: string) => stdout.write(`${style.dim(escapeControls(message))}\n`);
      const preview = await parts.previewData({ ...options, count, onNotice });
      for (const { where, tokens, supervisedTokens, pieces, label } of preview.rows) {
        const size = options.model === undefined ? "" : `  ${words.size(tokens, supervisedTokens)}`;
        const name = label === undefined ? "" : `  ${label}`;
        stdout.write(`${style.bold(escapeControls(where + name))}${style.dim(size)}\n`);
        const text = pieces.map((piece) => (piece.supervised ? learnt : style.dim)(escapeControls(piece.text))).join("");
        stdout.write(`${text}${text.endsWith("\n") ? "" : "\n"}\n`);
      }
      for (const notice of preview.notices) stdout.write(`${style.yellow(common.warning)} ${escapeControls(notice)}\n`);
      const { examples, stage, tokens, supervised, labels } = preview;
      stdout.write(`${words.read(examples, escapeControls(stage))}\n`);
      stdout.write(`${words.lengths(tokens, options.cutoffLen)}\n`);
      for (const [label, rows] of labels.slice(0, mostLabels)) stdout.write(`  ${escapeControls(label)}  ${rows}\n`);
      if (labels.length > mostLabels) stdout.write(`  ${words.moreLabels(labels.length - mostLabels)}\n`);
      const mark = isColoured ? words.green : words.between(open, close);
      if (supervised !== null) stdout.write(`${words.learnt(supervised.tokens, supervised.of, mark)}\n`);
      if (options.model === undefined) stdout.write(style.dim(`${words.inChatML}\n`));
    });
};

const mostLabels = 30;

/** What a recipe says of its data; a pipeline, of the data of one stage, the first where none is asked for. Throws ConfigError. */
async function settingsOf(file: string, stage: string | undefined) {
  const { readRecipe } = await import("../recipe/parse.js");
  const { parseWork } = await import("../recipe/pipeline.js");
  const { everyMethod } = await import("../backends/index.js");
  const work = parseWork(await readRecipe(file), [], everyMethod);
  const recipe = work.recipe ?? stageOf(work.pipeline, stage, file).draft;
  return {
    dataset: recipe.dataset,
    datasetDir: recipe.dataset_dir,
    cutoffLen: recipe.cutoff_len,
    stage: work.recipe === undefined ? recipe.stage : (stage ?? recipe.stage),
    model: recipe.model_name_or_path,
    revision: recipe.model_revision,
    template: recipe.template ?? undefined,
    toolFormat: recipe.tool_format ?? undefined,
    defaultSystem: recipe.default_system ?? undefined,
    enableThinking: recipe.enable_thinking ?? undefined,
    trainOnPrompt: recipe.train_on_prompt,
    maskHistory: recipe.mask_history,
  };
}

/** The stage of a name such as `2-rm`, or the first of an objective. */
function stageOf({ stages }: Pipeline, asked: string | undefined, file: string): Stage {
  const found = asked === undefined ? stages[0] : stages.find(({ name, recipe }) => [name, recipe.stage].includes(asked));
  if (found !== undefined) return found;
  throw new ConfigError(
    `--stage: ${file} has no stage ${JSON.stringify(asked)}; there are ${stages.map(({ name }) => name).join(", ")}`,
  );
}
