import type { AddCommand } from "./command.js";
import type { Finding } from "./machine-checks.js";
import { escapeControls, hasUnicode, type Io, styleFor } from "./terminal.js";

/** `attune doctor`: what this machine has, and what is missing. Needs nothing but Node. The exit code is 1 if nothing can train here. */
export const doctor: AddCommand = (program, { io, version, setExitCode }) => {
  program
    .command("doctor")
    .summary("check this machine, and say what is missing")
    .description("Check this machine, and say what is missing and how to get it.")
    .action(async () => {
      const canTrain = await examine(io, version);
      if (!canTrain) setExitCode(1);
    });
};

/** Prints a line for each check, and then what to do. Returns whether anything can train here. */
async function examine({ stdout, env }: Io, version: string): Promise<boolean> {
  const style = styleFor(stdout, env);
  const [good, bad] = hasUnicode(env) ? ["✓", "✗"] : ["ok", "--"];
  stdout.write(`${style.bold(`attune ${version}`)}\n`);

  const findings: Finding[] = [];
  const { checks } = await import("./machine-checks.js");
  for (const check of checks) {
    for (const finding of await check(env)) {
      const mark = finding.advice === undefined ? style.green(good) : finding.isNeeded ? style.red(bad) : style.yellow(bad);
      stdout.write(`${mark.padEnd(2)} ${finding.name.padEnd(9)} ${escapeControls(finding.value)}\n`);
      findings.push(finding);
    }
  }

  const missing = findings.filter(({ advice }) => advice !== undefined);
  if (missing.length > 0) stdout.write(`\n${style.bold("What to do")}\n`);
  for (const { name, advice = "" } of missing)
    stdout.write(`   ${name.padEnd(9)} ${escapeControls(advice).replaceAll("\n", `\n${" ".repeat(13)}`)}\n`);
  const canTrain = missing.every(({ isNeeded }) => !isNeeded);
  stdout.write(`\n${canTrain ? "This machine can train." : "Nothing can train here yet."}\n`);
  return canTrain;
}
