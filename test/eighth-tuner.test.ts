/** A method that attune does not have, written as its own would be: one file, and one line in the list. Nothing else is told of it. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { z } from "zod";
import { everyMethod } from "../src/backends/index.js";
import { Chat, train } from "../src/index.js";
import { peft } from "../src/io/adapters/peft.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { recipeJsonSchema } from "../src/recipe/schema.js";
import { tuners } from "../src/tuners/index.js";
import { trainCopies } from "../src/tuners/train-whole.js";
import { defineTuner, type Tuner } from "../src/tuners/tuner.js";
import { collect, tinyRecipe } from "./support/run.js";

const LnTuningConfig = z.strictObject({
  ln_tuning_norms: z
    .enum(["all", "last"])
    .default("all")
    .describe("which norms train: all, or the one before the output projection"),
});

/** LN tuning: the weights of norms train, and nothing else does. Source: Zhao et al. 2023, arXiv:2312.11420; saved as PEFT's LN_TUNING. */
const lnTuning = defineTuner<z.output<typeof LnTuningConfig>>({
  name: "ln-tuning",
  summary: "trains the weights of norms",
  config: LnTuningConfig,
  bind: ({ ln_tuning_norms }) => ({
    apply(model) {
      model.freeze();
      trainCopies(model, (path) => (ln_tuning_norms === "all" ? path.endsWith("norm.weight") : path === "model.norm.weight"));
    },
    adapter: { library: peft(), toJson: () => ({ peft_type: "LN_TUNING", target_modules: ["norm"] }) },
  }),
  adapter: {
    library: peft(),
    recognises: ({ peft_type }) => peft_type === "LN_TUNING",
    fromJson: (_json, tensors) => ({ ln_tuning_norms: tensors.size > 1 ? "all" : "last" }),
  },
});

(tuners as Tuner<never>[]).push(lnTuning as Tuner<never>);

test("an eighth method is in the recipe, trains, is saved, resumes, and is used, by being in the list", async (t) => {
  assert.ok("ln_tuning_norms" in recipeJsonSchema(everyMethod).properties);
  const folder = temporaryFolder(t);
  const recipe = tinyRecipe(folder, { finetuning_type: "ln-tuning", save_strategy: "steps", save_steps: 5, learning_rate: 1e-2 });
  const events = await collect(recipe);
  const steps = events.filter((event) => event.type === "step");
  assert.ok(steps.at(-1)!.loss < 0.9 * steps[0]!.loss, `from ${steps[0]!.loss} to ${steps.at(-1)!.loss}`);
  const out = join(folder, "out");
  const config = JSON.parse(readFileSync(join(out, "adapter_config.json"), "utf8")) as Record<string, unknown>;
  assert.equal(config.peft_type, "LN_TUNING");

  const resumed = await train({ ...recipe, resume_from_checkpoint: join(out, "checkpoint-5") });
  assert.ok(resumed.trainable_params > 0);
  const again = { ...recipe, output_dir: join(folder, "again"), adapter_name_or_path: out, max_steps: 2 };
  const goingOn = (await collect(again)).filter((event) => event.type === "step");
  assert.ok(goingOn[0]!.loss < steps[0]!.loss);

  const chat = await Chat.open({
    model: recipe.model_name_or_path,
    adapter: new Map([["ln", out]]),
    template: "chatml",
  });
  const messages = [{ role: "user", content: "Where is the cat?" }];
  const [answer] = await chat.answerAll([messages], { maxNewTokens: 8 });
  chat.useAdapter(null);
  assert.notEqual((await chat.answerAll([messages], { maxNewTokens: 8 }))[0], answer);
  chat.close();
  await assert.rejects(
    train(tinyRecipe(folder, { finetuning_type: "ln-tuning", ln_tuning_norms: "some" })),
    /ln_tuning_norms: expected one of all, last/,
  );
});
