import { readFile } from "node:fs/promises";
import { CommanderError } from "commander";
import { AttuneError } from "../errors.js";
import { chat } from "./chat.js";
import { classify } from "./classify.js";
import { type AddCommand, type Context, newProgram } from "./command.js";
import { data } from "./data.js";
import { doctor } from "./doctor.js";
import { elsewhere } from "./elsewhere.js";
import { env } from "./env.js";
import { exportCommand } from "./export.js";
import { help } from "./help.js";
import { label } from "./label.js";
import type { Parts } from "./parts.js";
import { score } from "./score.js";
import { displayWidth, escapeControls, type Io, styleFor, wrapText } from "./terminal.js";
import { train } from "./train.js";
import { version } from "./version.js";
import { takeLanguage, wordsFor } from "./words/index.js";

/** In the order of the help. */
const commands: readonly AddCommand[] = [
  train,
  chat,
  exportCommand,
  classify,
  score,
  label,
  data,
  doctor,
  env,
  version,
  help,
  elsewhere,
];

const badInput = 2;

/** Runs one command line, `argv` without node and script. Returns the exit code; errors are printed, not thrown. */
export async function main(argv: readonly string[], parts: Parts, { stdin, stdout, stderr, env }: Io): Promise<number> {
  let io: Io = { stdin, stdout, stderr, env };
  let exitCode = 0;
  const setExitCode = (code: number) => {
    exitCode = code;
  };
  try {
    const { language, rest } = takeLanguage(argv);
    if (language !== undefined) io = { ...io, env: { ...env, ATTUNE_LANG: language } };
    const program = buildProgram({ io, words: wordsFor(io.env), parts, version: await readVersion(), setExitCode });
    if (rest.length === 0) program.help();
    await program.parseAsync(rest, { from: "user" });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return isHelp(error) ? 0 : badInput; // it has printed its message
    return report(error, io);
  }
}

function buildProgram(context: Context) {
  const { stdout, stderr } = context.io;
  const { program: words, headings } = context.words;
  const program = newProgram("attune")
    .description(words.description)
    .version(context.version, "-v, --version", words.version)
    .option("--lang <name>", words.lang) // taken out before; declared for the help
    .helpOption("-h, --help", words.help)
    .helpCommand(false)
    .showSuggestionAfterError()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => stdout.write(text),
      writeErr: (text) => stderr.write(text),
      outputError: (text, write) => write(escapeControls(text.replace(/^error: /, "attune: "))),
    })
    .configureHelp({
      subcommandTerm: (command) => `${command.name()} ${command.usage().replace("[options]", "")}`.trim(),
      styleTitle: (title) => headings[title as keyof typeof headings] ?? title,
      displayWidth,
      boxWrap: wrapText,
    })
    .addHelpText("after", words.examples);
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
  const words = wordsFor(env).program;
  const intro = isOurs ? "" : words.bug;
  stderr.write(`${style.red("attune:")} ${intro}${escapeControls(message)}\n`);
  if (env.ATTUNE_DEBUG === "1" && error instanceof Error) stderr.write(`${escapeControls(stackOf(error))}\n`);
  else if (!isOurs) stderr.write(`${words.debug}\n`);
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
