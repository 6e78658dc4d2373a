import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type RecipeSettings, type RunEvent, type StepEvent, trainEvents } from "../../src/index.js";
import { tinyLlama } from "./tiny-llama.js";

export function makeFolder(): string {
  return mkdtempSync(join(tmpdir(), "attune-run-"));
}

const animals = ["cat", "dog", "owl", "fox", "hen", "yak"];
const places = ["mat", "hill", "roof", "farm"];

/** 24 short conversations of different lengths. */
export function writeRows(folder: string): string {
  const path = join(folder, "rows.jsonl");
  const rows = animals.flatMap((animal) =>
    places.map((place, i) => ({
      messages: [
        { role: "user", content: `Where is the ${animal}${"?".repeat(i + 1)}` },
        { role: "assistant", content: `on the ${place}` },
      ],
    })),
  );
  writeFileSync(path, rows.map((row) => JSON.stringify(row)).join("\n"));
  return path;
}

/** A recipe, and whatever a test wants to see refused. */
export type AnyRecipe = { -readonly [Key in keyof RecipeSettings]: RecipeSettings[Key] } & Record<string, unknown>;

/** A recipe that uses everything that could make a resumed run differ: dropout, packing, accumulation, warm-up, part of an epoch. */
export function tinyRecipe(folder: string, changes: Readonly<Record<string, unknown>> = {}): AnyRecipe {
  return {
    model_name_or_path: join(tinyLlama, "tied"),
    dataset: [writeRows(folder)],
    output_dir: join(folder, "out"),
    lora_dropout: 0.1,
    packing: true,
    cutoff_len: 96,
    per_device_train_batch_size: 1,
    gradient_accumulation_steps: 2,
    num_train_epochs: 1.5,
    learning_rate: 3e-3,
    lr_scheduler_type: "cosine",
    warmup_steps: 2,
    logging_steps: 1,
    save_strategy: "no",
    plot_loss: false,
    compute_dtype: "f32",
    ...changes,
  };
}

export async function collect(recipe: RecipeSettings, onEvent: (event: RunEvent) => void = () => {}, signal?: AbortSignal) {
  const events: RunEvent[] = [];
  for await (const event of trainEvents(recipe, signal)) {
    events.push(event);
    onEvent(event);
  }
  return events;
}

/** What a step computed, as text that keeps every bit. */
export function trace(events: readonly RunEvent[]): string[] {
  const bits = (value: number) => Buffer.from(Float64Array.of(value).buffer).toString("hex");
  const steps = events.filter((event): event is StepEvent => event.type === "step");
  return steps.map(({ step, loss, gradNorm, learningRate, tokens }) =>
    [step, bits(loss), bits(gradNorm), bits(learningRate), tokens].join(" "),
  );
}

export function hashOf(path: string): string {
  return createHash("sha256").update(readFileSync(path)).digest("hex");
}
