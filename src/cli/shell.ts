import { realpathSync } from "node:fs";
import { delimiter, dirname, isAbsolute, join, relative, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import type { Io } from "./terminal.js";

/** The folder of attune's package. */
export const packageRoot = fileURLToPath(new URL("../../../", import.meta.url)); // from dist/src/cli

interface Surroundings {
  readonly root?: string;
  readonly folder?: string;
  readonly platform?: string;
}

/**
 * The words that begin a command of attune where it runs now: `attune` if a shell finds this very package under that name, `npx attune` where it is a
 * project's dependency, and `node bin/attune.js`, seen from the working folder, in a clone.
 */
export function invocation(
  env: Io["env"],
  { root = packageRoot, folder = process.cwd(), platform = process.platform }: Surroundings = {},
): string[] {
  const script = join(root, "bin", "attune.js");
  if (isOnPath(env.PATH ?? env.Path ?? "", script, platform)) return ["attune"];
  if (resolve(root).split(sep).includes("node_modules")) return ["npx", "attune"];
  const near = relative(folder, script);
  return ["node", isAbsolute(near) || near.startsWith(join("..", "..", "..")) ? script : near];
}

/** npx and npm's scripts put a project's own programs on the path for as long as they run: those do not count. */
function isOnPath(path: string, script: string, platform: string): boolean {
  const folders = path.split(delimiter).filter((each) => each !== "" && !each.endsWith(join("node_modules", ".bin")));
  return folders.some((each) =>
    platform === "win32" // where npm puts a small script beside the folder of global packages
      ? samePlace(join(each, "node_modules", "attune"), dirname(dirname(script)))
      : samePlace(join(each, "attune"), script),
  );
}

function samePlace(one: string, other: string): boolean {
  try {
    return realpathSync(one) === realpathSync(other);
  } catch {
    return false; // one of them is not there
  }
}

/** A command as a line that can be pasted: into a POSIX shell, or on Windows into cmd or PowerShell. */
export function commandLine(words: readonly string[], platform: string = process.platform): string {
  return words.map(platform === "win32" ? wordForWindows : wordForPosix).join(" ");
}

function wordForPosix(word: string): string {
  return /^[\w@%+=:,./~-]+$/.test(word) && !word.startsWith("~") ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/** In double quotes, which both shells know; a quote inside is doubled, and backslashes before one too. */
function wordForWindows(word: string): string {
  if (/^[\w@+=:./\\-]+$/.test(word)) return word;
  return `"${word.replace(/(\\*)("|$)/g, (_, slashes: string, quote: string) => slashes + slashes + quote + quote)}"`;
}

/** A system message of more characters is not written out in a command. */
const longestSystem = 200;

/** Whether a system message can stand in a command that is pasted. */
export function fitsCommand(system: string): boolean {
  return system.length <= longestSystem && !/[\r\n]/.test(system);
}

/** The flag for a system message, where there is one that can stand in a command. */
export function systemFlag(system: string | undefined): string[] {
  return system === undefined || !fitsCommand(system) ? [] : ["--system", system];
}
