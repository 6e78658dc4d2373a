import { ConfigError } from "../errors.js";
import type { AddCommand } from "./command.js";
import { readRecipeArgs } from "./recipe-use.js";

const interruptedCode = 130;

/** `attune train [RECIPE] [key=value …]`: runs a recipe, or the stages of a pipeline, and shows what the events say. */
export const train: AddCommand = (program, { parts, io, words: { train: words }, setExitCode }) => {
  program
    .command("train")
    .summary(words.summary)
    .description(words.description)
    .usage("recipe.yaml [key=value ...]")
    .argument("[args...]")
    .allowUnknownOption() // a setting may be written as a flag; the recipe's schema knows them all
    .addHelpText("after", words.examples)
    .action(async (args) => {
      if (args.length === 0) throw new ConfigError("expected a recipe: attune train recipe.yaml. See attune train --help");
      const { parseWork } = await import("../recipe/pipeline.js");
      const { everyMethod } = await import("../backends/index.js");
      const { TrainingView } = await import("./training-view.js");
      const { watchInterrupts } = await import("./interrupts.js");
      const { source, overrides } = await readRecipeArgs(args);
      const { notices, ...work } = parseWork(source, overrides, everyMethod);
      const { pipeline } = work;
      const stages = pipeline === undefined ? [{ name: "", recipe: work.recipe }] : pipeline.stages;

      let { recipe } = stages[0]!;
      let view = new TrainingView(recipe, io);
      const interrupts = watchInterrupts(() => view.say(words.stopping));
      try {
        for await (const event of parts.runWork(work, { signal: interrupts.signal, notices })) {
          if (event.type === "stage") {
            view.leaveBar();
            recipe = stages.find(({ name }) => name === event.name)!.recipe;
            view = new TrainingView(recipe, io, pipeline?.outputDir);
          }
          view.show(event);
          if (event.type === "end" && recipe !== stages.at(-1)!.recipe && !event.interrupted) view.summarizeStage(event);
        }
      } finally {
        interrupts.stop();
        view.leaveBar();
      }
      if (view.end === undefined) throw new Error("the run ended without its last event");
      const system = await parts.systemPromptOf(recipe.dataset, recipe.dataset_dir);
      view.summarize(view.end, system);
      if (view.end.interrupted) setExitCode(interruptedCode);
    });
};
