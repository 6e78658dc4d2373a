import { ConfigError } from "../errors.js";
import type { AddCommand } from "./command.js";

const interruptedCode = 130;

/** `attune train [RECIPE] [key=value …]`: runs a recipe and shows what its events say. */
export const train: AddCommand = (program, { parts, io, setExitCode }) => {
  program
    .command("train")
    .summary("fine-tune a model as a recipe says")
    .description("Fine-tune a model as a recipe says. Settings after the recipe, key=value or --key value, win over it.")
    .usage("recipe.yaml [key=value ...]")
    .argument("[args...]")
    .allowUnknownOption() // a setting may be written as a flag; the recipe's schema knows them all
    .addHelpText(
      "after",
      `
A recipe of the fewest settings:
  model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct
  dataset: orders.jsonl          # Alpaca, ShareGPT or OpenAI messages, JSON or JSONL
  output_dir: runs/orders

Examples:
  attune train recipe.yaml
  attune train recipe.yaml num_train_epochs=1 --lora-rank 16
  attune train recipe.yaml resume_from_checkpoint=true     go on after an interruption

Ctrl-C ends the run after the step under way and saves; a second Ctrl-C stops at once.
All settings: docs/recipe.md. Exit codes: 2 bad input, 3 diverged, 4 no space, 5 does not fit, 130 interrupted.`,
    )
    .action(async (args) => {
      const [first] = args;
      if (first === undefined) throw new ConfigError("expected a recipe: attune train recipe.yaml. See attune train --help");
      const { parseRecipe, readRecipe } = await import("../recipe/parse.js");
      const { everyMethod } = await import("../backends/index.js");
      const { TrainingView } = await import("./training-view.js");
      const { watchInterrupts } = await import("./interrupts.js");
      const hasFile = !first.startsWith("--") && !/^[A-Za-z][\w-]*=/.test(first);
      const source = hasFile ? await readRecipe(first) : undefined;
      const { recipe, notices } = parseRecipe(source, hasFile ? args.slice(1) : args, everyMethod);

      const view = new TrainingView(recipe, io);
      const interrupts = watchInterrupts(() => view.say("Stopping after this step; Ctrl-C again stops at once."));
      try {
        for await (const event of parts.runRecipe(recipe, { signal: interrupts.signal, notices })) view.show(event);
      } finally {
        interrupts.stop();
        view.leaveBar();
      }
      if (view.end === undefined) throw new Error("the run ended without its last event");
      view.summarize(view.end);
      if (view.end.interrupted) setExitCode(interruptedCode);
    });
};
