import { ConfigError } from "../errors.js";
import type { AddCommand } from "./command.js";
import { readRecipeArgs } from "./recipe-use.js";

const interruptedCode = 130;

/** `attune train [RECIPE] [key=value …]`: runs a recipe and shows what its events say. */
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
      const { parseRecipe } = await import("../recipe/parse.js");
      const { everyMethod } = await import("../backends/index.js");
      const { TrainingView } = await import("./training-view.js");
      const { watchInterrupts } = await import("./interrupts.js");
      const { source, overrides } = await readRecipeArgs(args);
      const { recipe, notices } = parseRecipe(source, overrides, everyMethod);

      const view = new TrainingView(recipe, io);
      const interrupts = watchInterrupts(() => view.say(words.stopping));
      try {
        for await (const event of parts.runRecipe(recipe, { signal: interrupts.signal, notices })) view.show(event);
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
