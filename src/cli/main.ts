import { readFile } from "node:fs/promises";
import { CommanderError } from "commander";
import { AttuneError } from "../errors.js";
import { chat } from "./chat.js";
import { classify } from "./classify.js";
import { type AddCommand, type Context, newProgram } from "./command.js";
import { data } from "./data.js";
import { doctor } from "./doctor.js";
import { exportCommand } from "./export.js";
import type { Parts } from "./parts.js";
import { escapeControls, type Io, styleFor } from "./terminal.js";
import { train } from "./train.js";

/** In the order of the help. */
const commands: readonly AddCommand[] = [train, chat, exportCommand, classify, data, doctor];

const examples = `
Examples:
  attune train recipe.yaml                       train as the recipe says
  attune train recipe.yaml learning_rate=1e-4    the same with another setting
  attune chat --model MODEL --adapter runs/mine  talk to the result
  attune export --adapter runs/mine --to gguf --out exported
  attune classify --model MODEL "great soup"     the class of a text, by a trained classifier
  attune data preview orders.jsonl               see what a model would learn
  attune doctor                                  check this machine

MODEL is a folder, a GGUF file, or a name on the hub such as HuggingFaceTB/SmolLM2-135M-Instruct.
A recipe is a YAML file with LLaMA-Factory's names; docs/recipe.md lists them all.`;

const badInput = 2;

/** Runs one command line, `argv` without node and script. Returns the exit code; errors are printed, not thrown. */
export async function main(argv: readonly string[], parts: Parts, io: Io): Promise<number> {
  let exitCode = 0;
  const setExitCode = (code: number) => {
    exitCode = code;
  };
  const program = buildProgram({ io, parts, version: await readVersion(), setExitCode });
  try {
    if (argv.length === 0) program.help();
    await program.parseAsync([...argv], { from: "user" });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return isHelp(error) ? 0 : badInput; // it has printed its message
    return report(error, io);
  }
}

function buildProgram(context: Context) {
  const { stdout, stderr } = context.io;
  const program = newProgram("attune")
    .description("Fine-tune language models on your own machine.")
    .version(context.version, "-v, --version", "print the version")
    .helpOption("-h, --help", "print this, or the help of a command")
    .helpCommand(false)
    .showSuggestionAfterError()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => stdout.write(text),
      writeErr: (text) => stderr.write(text),
      outputError: (text, write) => write(escapeControls(text.replace(/^error: /, "attune: "))),
    })
    .configureHelp({ subcommandTerm: (command) => `${command.name()} ${command.usage().replace("[options]", "")}`.trim() })
    .addHelpText("after", examples);
  for (const addTo of commands) addTo(program, context);
  return program;
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
