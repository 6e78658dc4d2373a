import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { release, type } from "node:os";
import { join } from "node:path";
import type { AddCommand } from "./command.js";
import { packageRoot } from "./shell.js";
import { escapeControls, type Io } from "./terminal.js";
import { en } from "./words/en.js";

/** `attune env`: what a report of a bug needs, in English whatever the language, for whoever reads it. */
export const env: AddCommand = (program, { io, words: { env: words }, version }) => {
  program
    .command("env")
    .summary(words.summary)
    .description(words.description)
    .action(async () => {
      const { machine } = await import("./machine-checks.js");
      const facts: [name: string, value: string][] = [
        ["attune", `${version}, ${whereFrom()}`],
        ["os", systemName()],
      ];
      for (const check of machine)
        for (const { name, value, advice } of await check(io.env, en.doctor))
          facts.push([name, name === "engine" && advice !== undefined ? `${value}: ${advice}` : value]);
      facts.push(["environment", variables(io.env)]);
      for (const [name, value] of facts) io.stdout.write(`- ${name}: ${escapeControls(value).replaceAll("\n", "\n  ")}\n`);
    });
};

/** The commit of a clone, with `-dirty` if files were changed; or that it is an installed package. */
function whereFrom(): string {
  if (!existsSync(join(packageRoot, ".git"))) return "an installed package";
  try {
    const said = execFileSync("git", ["describe", "--always", "--dirty", "--exclude=*"], {
      cwd: packageRoot,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
      timeout: 5000,
    });
    return `commit ${said.trim()}`;
  } catch {
    return "a clone whose commit git does not tell";
  }
}

function systemName(): string {
  const kernel = `${type()} ${release()}`;
  if (!existsSync("/etc/os-release")) return kernel;
  const name = /^PRETTY_NAME="?([^"\n]*)/m.exec(readFileSync("/etc/os-release", "utf8"))?.[1];
  return name ? `${kernel}, ${name}` : kernel;
}

/** What is set of that which changes how attune works; secrets by name only. */
function variables(env: Io["env"]): string {
  const wanted = /^(ATTUNE_|HF_|HUGGINGFACE_|LANG$|LC_|NO_COLOR$|FORCE_COLOR$|TERM$|CXX$)/;
  const isSecret = /TOKEN|KEY|SECRET|PASSWORD/;
  const set = Object.entries(env).filter(([name, value]) => wanted.test(name) && value);
  const shown = set
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, value]) => `${name}=${isSecret.test(name) ? "(set)" : value}`);
  return shown.join(" ") || "nothing of attune's or Hugging Face's is set";
}
