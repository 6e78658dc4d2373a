import assert from "node:assert/strict";
import { join } from "node:path";
import test from "node:test";
import type { RecipeSettings } from "../src/index.js";
import { tuners } from "../src/tuners/index.js";
import { collect, makeFolder, writeRows } from "./support/run.js";
import { tinyLlama } from "./support/tiny-llama.js";

/** Variants of methods that have steps of their own, or start in another way; every method by itself is covered by being in the list. */
const variants: readonly Partial<RecipeSettings>[] = [
  { finetuning_type: "adapter", adapter_config: "pfeiffer" },
  { finetuning_type: "adapter", adapter_config: "parallel" },
  { finetuning_type: "p-tuning", encoder_reparameterization_type: "LSTM" },
  { finetuning_type: "p-tuning", encoder_reparameterization_type: "NONE" },
  { finetuning_type: "prefix-tuning", prefix_projection: true },
];

for (const settings of [...tuners.map(({ name }) => ({ finetuning_type: name })), ...variants])
  test(`${Object.values(settings).join(", ")}: a recipe of three lines learns, and its start says with what`, async () => {
    const folder = makeFolder();
    const recipe = { model_name_or_path: join(tinyLlama, "tied"), dataset: writeRows(folder), output_dir: join(folder, "out") };
    const events = await collect({ ...recipe, ...settings, plot_loss: false, compute_dtype: "f32" } as RecipeSettings);
    const told = events.flatMap((event) => (event.type === "notice" ? event.message : [])).join("\n");
    assert.match(told, /no learning_rate is set: [a-z-]+ takes \d(\.\d+)?e-\d/);
    const losses = events.flatMap((event) => (event.type === "step" ? event.loss : []));
    assert.equal(losses.length, 18, "24 rows, 3 times, 4 a step");
    const mean = (part: readonly number[]) => part.reduce((sum, loss) => sum + loss, 0) / part.length;
    const [first, last] = [mean(losses.slice(0, 3)), mean(losses.slice(-6))]; // a random model learns little in 18 steps through narrow adapters
    assert.ok(last < 0.995 * first, `from ${first} to ${last}`);
  });
