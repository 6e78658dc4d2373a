import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";

/** The Python environment with torch, transformers and peft, if the user named one: CONTRIBUTING.md says how to make it. */
const venv = process.env.ATTUNE_PEERS;

/** `false`, or why tests against the Python libraries are skipped. */
export const skipWithoutPeers = venv === undefined && "set ATTUNE_PEERS to a venv with torch, transformers and peft to run this";

/** Runs a script of test/parity with the peers' Python and returns what it prints. Two threads, as attune. */
export function runPython(script: string, args: readonly string[]): string {
  const path = join(import.meta.dirname, "../../../test/parity", script);
  const env = { ...process.env, OMP_NUM_THREADS: "2", HF_HUB_OFFLINE: "1" };
  return execFileSync(join(venv!, "bin/python"), [path, ...args], { encoding: "utf8", maxBuffer: 2 ** 30, env });
}

/** SmolLM2-135M-Instruct as a Hugging Face folder in bf16, made once beside the venv. */
export function smolLM2Folder(): string {
  const folder = join(venv!, "smollm2-135m-instruct");
  if (!existsSync(join(folder, "tokenizer.json"))) runPython("smollm2_folder.py", [folder]);
  return folder;
}
