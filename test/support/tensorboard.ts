import { readdirSync, readFileSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { collect, makeFolder, tinyRecipe } from "./run.js";

/** Tag → [step, value] in order. */
export type Board = Readonly<Record<string, readonly (readonly [step: number, value: number])[]>>;

/**
 * A run for TensorBoard that was killed in the middle of a record after step 6 and went on from step 4. Returns its folder of event files, and what has to
 * be seen there: what trainer_state.json says.
 */
export async function killedAndResumed(settings: Readonly<Record<string, unknown>>): Promise<{ board: string; expected: Board }> {
  const folder = makeFolder();
  const recipe = tinyRecipe(folder, {
    ...{
      report_to: "tensorboard",
      max_steps: 8,
      val_size: 0.2,
      eval_strategy: "steps",
      eval_steps: 4,
      save_strategy: "steps",
      save_steps: 4,
    },
    ...settings,
  });
  const stop = new AbortController();
  await collect(recipe, (event) => event.type === "step" && event.step === 6 && stop.abort(), stop.signal);
  const runs = join(folder, "out/runs");
  const board = (recipe.logging_dir as string | undefined) ?? join(runs, readdirSync(runs)[0]!);
  const file = join(board, readdirSync(board)[0]!);
  truncateSync(file, readFileSync(file).length - 7);
  await collect({ ...recipe, resume_from_checkpoint: join(folder, "out/checkpoint-4") });
  return { board, expected: expectedOf(JSON.parse(readFileSync(join(folder, "out/trainer_state.json"), "utf8")).log_history) };
}

function expectedOf(history: readonly Readonly<Record<string, number>>[]): Board {
  const board: Record<string, [number, number][]> = {};
  for (const { step, ...entry } of history)
    for (const [name, value] of Object.entries(entry)) {
      if (name === "epoch" && !("loss" in entry)) continue;
      const tag = name.startsWith("eval_") ? `eval/${name.slice(5)}` : `train/${name}`;
      board[tag] = [...(board[tag] ?? []), [step!, Math.fround(value)]];
    }
  return board;
}
