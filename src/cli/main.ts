import { readFile } from "node:fs/promises";
import { Command, CommanderError } from "commander";
import { AttuneError } from "../errors.js";
import { exportTargets, numberTypes } from "../export/choices.js";
import type { ChatFlags } from "./chat.js";
import type { Parts } from "./parts.js";
import { escapeControls, type Io, styleFor } from "./terminal.js";

const badInput = 2;

/** Runs one command line, `argv` without node and script. Returns the exit code; errors are printed, not thrown. */
export async function main(argv: readonly string[], parts: Parts, io: Io): Promise<number> {
  let exitCode = 0;
  const program = buildProgram(io, parts, await readVersion(), (code) => {
    exitCode = code;
  });
  try {
    if (argv.length === 0) program.help();
    await program.parseAsync([...argv], { from: "user" });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return isHelp(error) ? 0 : badInput; // it has printed its message
    return report(error, io);
  }
}

function isHelp({ code }: CommanderError): boolean {
  return ["commander.help", "commander.helpDisplayed", "commander.version"].includes(code);
}

function report(error: unknown, { stderr, env }: Io): number {
  const style = styleFor(stderr, env);
  const isOurs = error instanceof AttuneError;
  const message = error instanceof Error ? error.message : String(error);
  const intro = isOurs ? "" : "this is a bug in attune: ";
  stderr.write(`${style.red("attune:")} ${intro}${escapeControls(message)}\n`);
  if (env.ATTUNE_DEBUG === "1" && error instanceof Error) stderr.write(`${escapeControls(stackOf(error))}\n`);
  else if (!isOurs) stderr.write("Set ATTUNE_DEBUG=1 and run it again to see where.\n");
  return isOurs ? error.exitCode : 1;
}

function stackOf(error: Error): string {
  const cause = error.cause instanceof Error ? `\nCaused by: ${stackOf(error.cause)}` : "";
  return `${error.stack ?? error.message}${cause}`;
}

async function readVersion(): Promise<string> {
  const path = new URL("../../../package.json", import.meta.url); // from dist/src/cli
  return JSON.parse(await readFile(path, "utf8")).version;
}

function buildProgram(io: Io, parts: Parts, version: string, setExitCode: (code: number) => void): Command {
  const program = new Command("attune");
  program
    .description("Fine-tune language models on your own machine.")
    .version(version, "-v, --version", "print the version")
    .helpOption("-h, --help", "print this, or the help of a command")
    .helpCommand(false)
    .showSuggestionAfterError()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => io.stdout.write(text),
      writeErr: (text) => io.stderr.write(text),
      outputError: (text, write) => write(escapeControls(text.replace(/^error: /, "attune: "))),
    })
    .configureHelp({ subcommandTerm: (command) => `${command.name()} ${command.usage().replace("[options]", "")}`.trim() })
    .addHelpText(
      "after",
      `
Examples:
  attune train recipe.yaml                       train as the recipe says
  attune train recipe.yaml learning_rate=1e-4    the same with another setting
  attune chat --model MODEL --adapter runs/mine  talk to the result
  attune export --adapter runs/mine --to gguf --out exported
  attune classify --model MODEL "great soup"     the class of a text, by a trained classifier
  attune data preview orders.jsonl               see what a model would learn
  attune doctor                                  check this machine

MODEL is a folder, a GGUF file, or a name on the hub such as HuggingFaceTB/SmolLM2-135M-Instruct.
A recipe is a YAML file with LLaMA-Factory's names; docs/recipe.md lists them all.`,
    );

  program
    .command("train")
    .summary("fine-tune a model as a recipe says")
    .description("Fine-tune a model as a recipe says. Settings after the recipe, key=value or --key value, win over it.")
    .usage("recipe.yaml [key=value ...]")
    .argument("[args...]")
    .allowUnknownOption()
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
    .action(async (args: string[]) => {
      const { train } = await import("./train.js");
      setExitCode(await train(args, parts, io));
    });

  program
    .command("chat")
    .summary("talk to a model, with or without an adapter")
    .description("Talk to a model. Without a terminal, each line of the input is one turn.")
    .usage("--model MODEL [--adapter [NAME=]FOLDER ...]")
    .option("-m, --model <model>", "a folder, a GGUF file, or a name on the hub")
    .option(
      "-a, --adapter <folder>",
      "the output_dir of a run, or an adapter of PEFT or AdapterHub; NAME=FOLDER, more than once, to change between them",
      (folder: string, before: string[] = []) => [...before, folder],
    )
    .option("-s, --system <text>", "a system message")
    .option("--template <name>", "another chat template than the adapter's or the model's own")
    .option("-n, --max-new-tokens <count>", "longest answer", "512")
    .option("-t, --temperature <number>", "0: always the likeliest token", "0")
    .option("--top-p <number>", "sample from the likeliest tokens of this total probability", "1")
    .addHelpText(
      "after",
      `
In the chat: /reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer.
With adapters: /adapter NAME changes to another, /base to the model without one, /adapters lists them.

Examples:
  attune chat --model SmolLM2-135M-Instruct --adapter runs/orders
  attune chat --model SmolLM2-135M-Instruct --adapter a=runs/orders --adapter b=runs/poems
  echo "two teas to table 5" | attune chat --model model.gguf`,
    )
    .action(async (options: ChatFlags) => {
      const { chat } = await import("./chat.js");
      setExitCode(await chat(options, parts, io));
    });

  program
    .command("export")
    .summary("take a model to other programs: Hugging Face, GGUF, Ollama")
    .description("Merge an adapter into its base and write the model for other programs, or write the adapter alone.")
    .usage("--to FORMAT --out FOLDER [--model MODEL] [--adapter FOLDER]")
    .option("--to <format>", `one of ${exportTargets.join(", ")}`)
    .option("-o, --out <folder>", "where to write; must be new or empty")
    .option("-m, --model <model>", "a folder, a GGUF file, or a name on the hub; default: the base that the adapter names")
    .option("-a, --adapter <folder>", "the output_dir of a run, or any adapter that chat takes")
    .option("--type <type>", `how weights are stored: ${numberTypes.join(", ")}; default: bf16 for hf, q8_0 for gguf and ollama`)
    .option("-d, --data <file>", "held-out rows: compare the loss before and after")
    .option("--max-drift <number>", "write nothing if a logit changes by more; default: what rounding to the type explains")
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
    .action(async (options: Record<string, string>) => {
      const { exportCommand } = await import("./export.js");
      setExitCode(await exportCommand(options, parts, io));
    });

  program
    .command("classify")
    .summary("tell which class texts belong to")
    .description("Print the class of each text, or of each line of the input, its score and the text.")
    .usage("--model MODEL [--adapter FOLDER] [text ...]")
    .argument("[texts...]")
    .option("-m, --model <model>", "a classifier, or the base of the adapter: a folder, a GGUF file, or a name on the hub")
    .option("-a, --adapter <folder>", "the output_dir of a run of stage classification, or such an adapter of PEFT's")
    .option("--json", "a JSON object a line, with the score of every class")
    .addHelpText(
      "after",
      `
Examples:
  attune classify --model all-MiniLM-L6-v2 --adapter runs/reviews "the best soup in town"
  attune classify --model runs/reviews-full --json < reviews.txt`,
    )
    .action(async (texts: string[], options: Record<string, string>) => {
      const { classify } = await import("./classify.js");
      setExitCode(await classify(texts, options, parts, io));
    });

  const data = program
    .command("data")
    .summary("look at training data")
    .description("Look at training data.")
    .usage("preview FILE")
    .helpCommand(false);
  data
    .command("preview")
    .summary("rows as the model will see them")
    .description("Print rows as the model will see them, the part it learns from in colour.")
    .usage("FILE [--model MODEL]")
    .argument("<file>", "JSON or JSONL, or a name in dataset_info.json")
    .option("-m, --model <model>", "whose tokenizer and chat template to use; without one, ChatML")
    .option("--template <name>", "another chat template than the model's own")
    .option("--tool-format <name>", "how tools and calls are written, where the chat template has no place for them")
    .option("--dataset-dir <folder>", "where dataset_info.json is", "data")
    .option("-n, --rows <count>", "how many rows", "3")
    .action(async (file: string, options: Record<string, string>) => {
      const { previewData } = await import("./data-preview.js");
      setExitCode(await previewData(file, options, io));
    });

  program
    .command("doctor")
    .summary("check this machine, and say what is missing")
    .description("Check this machine, and say what is missing and how to get it.")
    .action(async () => {
      const { doctor } = await import("./doctor.js");
      setExitCode(await doctor(io, version));
    });

  return program;
}
