import type { AddCommand } from "./command.js";
import type { Finding } from "./machine-checks.js";
import { escapeControls, hasUnicode, type Io, padTo, styleFor } from "./terminal.js";
import type { Words } from "./words/index.js";

/** `attune doctor`: what this machine has, and what is missing. Needs nothing but Node. The exit code is 1 if nothing can train here. */
export const doctor: AddCommand = (program, { io, words: { doctor: words }, version, setExitCode }) => {
  program
    .command("doctor")
    .summary(words.summary)
    .description(words.description)
    .action(async () => {
      const canTrain = await examine(io, words, version);
      if (!canTrain) setExitCode(1);
    });
};

/** Prints a line for each check, and then what to do. Returns whether anything can train here. */
async function examine({ stdout, env }: Io, words: Words["doctor"], version: string): Promise<boolean> {
  const style = styleFor(stdout, env);
  const [good, bad] = hasUnicode(env) ? ["✓", "✗"] : ["ok", "--"];
  stdout.write(`${style.bold(`attune ${version}`)}\n`);

  const findings: Finding[] = [];
  const { checks } = await import("./machine-checks.js");
  for (const check of checks) {
    for (const finding of await check(env, words)) {
      const mark = finding.advice === undefined ? style.green(good) : finding.isNeeded ? style.red(bad) : style.yellow(bad);
      stdout.write(`${mark.padEnd(2)} ${padTo(words.names[finding.name], 9)} ${escapeControls(finding.value)}\n`);
      findings.push(finding);
    }
  }

  const missing = findings.filter(({ advice }) => advice !== undefined);
  if (missing.length > 0) stdout.write(`\n${style.bold(words.whatToDo)}\n`);
  for (const { name, advice = "" } of missing)
    stdout.write(`   ${padTo(words.names[name], 9)} ${escapeControls(advice).replaceAll("\n", `\n${" ".repeat(13)}`)}\n`);
  const canTrain = missing.every(({ isNeeded }) => !isNeeded);
  stdout.write(`\n${canTrain ? words.canTrain : words.cannotTrain}\n`);
  return canTrain;
}
