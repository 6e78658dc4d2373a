import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeRows } from "./run.js";
import { tinyLlama } from "./tiny-llama.js";

export const root = join(import.meta.dirname, "../../..");

export interface Block {
  readonly language: string;
  readonly text: string;
}

/** The blocks of code of a page. */
export function blocksOf(page: string): Block[] {
  const text = readFileSync(join(root, page), "utf8");
  return [...text.matchAll(/```(\w+)\n(.*?)```/gs)].map(([, language, block]) => ({ language: language!, text: block! }));
}

/** Blocks that have to be the same in two languages: without their comments. */
export function runnableIn(page: string): [language: string, text: string][] {
  const runnable = blocksOf(page).filter(({ language }) => language !== "text");
  return runnable.map(({ language, text }) => [language, text.replaceAll(/[ \t]*(#|\/\/).*$/gm, "")]);
}

/** A user's project: attune among its packages, the data of the example, the example's model as a tiny one. */
export function makeProject(): { folder: string; inProject(text: string): string } {
  const folder = mkdtempSync(join(tmpdir(), "attune-readme-"));
  mkdirSync(join(folder, "node_modules/.bin"), { recursive: true });
  symlinkSync(root, join(folder, "node_modules/attune"), "junction");
  writeFileSync(join(folder, "package.json"), JSON.stringify({ type: "module", dependencies: { attune: "*" } }));
  copyFileSync(writeRows(folder), join(folder, "orders.jsonl"));
  const model = join(tinyLlama, "tied");
  return {
    folder,
    inProject: (text) => text.replaceAll("HuggingFaceTB/SmolLM2-135M-Instruct", model).replaceAll(/\bMODEL\b/g, model),
  };
}

/** Runs a command of attune in a project. Returns what it printed. */
export function runCommand(command: string, folder: string): string {
  const args = /^npx attune(.*)$/.exec(command)?.[1];
  assert.notEqual(args, undefined, `neither attune nor known: ${command}`);
  const ran = spawnSync(`"${process.execPath}" "${join(root, "bin/attune.js")}"${args!}`, {
    ...{ shell: true, cwd: folder, encoding: "utf8", input: "Where is the owl?\n", env: process.env },
  });
  assert.equal(ran.status, 0, `${command}\n${ran.stdout}${ran.stderr}`);
  return ran.stdout;
}
