import { readFileSync } from "node:fs";
import { join } from "node:path";
import { writeFileAtomic } from "../../io/disk.js";
import type { Reward } from "../../rewards/reward.js";
import type { Tokenizer } from "../../text/tokenizer/tokenizer.js";
import type { Answered } from "./rollout.js";

const fileName = "samples.jsonl";
/** Prompts whose answers are written. */
export const samplesShown = 4;

/**
 * Adds answers to `samples.jsonl`, a line each: the step, the prompt, what the policy answered, and what each reward said. Lines of later steps, from a run that
 * stopped and now goes on from before, give way.
 */
export async function writeSamples(
  folder: string | undefined,
  step: number,
  answered: readonly Answered[],
  { tokenizer, rewards }: { readonly tokenizer: Tokenizer; readonly rewards: readonly Reward[] },
): Promise<void> {
  if (folder === undefined) return;
  const lines = answered.slice(0, samplesShown).map(({ row, answers: [answer] }) =>
    JSON.stringify({
      step,
      row: row.where,
      prompt: tokenizer.decode(row.prompt, { special: true }),
      answer: answer!.text,
      reward: answer!.reward,
      rewards: Object.fromEntries(rewards.map(({ name }, i) => [name, answer!.scores[i] ?? null])),
      tokens: answer!.ids.length,
      is_finished: answer!.isFinished,
    }),
  );
  const path = join(folder, fileName);
  const kept = readLines(path).filter((line) => stepOf(line) < step);
  await writeFileAtomic(path, [...kept, ...lines].map((line) => `${line}\n`).join(""));
}

function readLines(path: string): string[] {
  try {
    return readFileSync(path, "utf8")
      .split("\n")
      .filter((line) => line !== "");
  } catch {
    return []; // there is none yet
  }
}

function stepOf(line: string): number {
  try {
    const { step } = JSON.parse(line) as { step: unknown };
    return typeof step === "number" ? step : Number.POSITIVE_INFINITY;
  } catch {
    return Number.POSITIVE_INFINITY; // half a line says nothing
  }
}
