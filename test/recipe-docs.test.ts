import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";
import { everyMethod } from "../src/backends/index.js";
import { ConfigError } from "../src/errors.js";
import { recipeDocs } from "../src/recipe/docs.js";
import { checkRecipe, parseRecipe } from "../src/recipe/parse.js";
import type { RecipeSettings } from "../src/recipe/recipe-settings.js";
import { axesOf, keySchemas, RecipeKeys } from "../src/recipe/schema.js";
import { recipeTypeSource } from "../src/recipe/type-source.js";

test("docs/recipe.md is what the schema gives", async () => {
  const written = await readFile(new URL("../../docs/recipe.md", import.meta.url), "utf8"); // from dist/test
  assert.ok(written === recipeDocs(everyMethod), "run: npm run build && node scripts/make-recipe-docs.mjs");
});

test("the type of recipes is what the schemas give, and completes and checks names and values", async () => {
  const written = await readFile(new URL("../../src/recipe/recipe-settings.ts", import.meta.url), "utf8");
  assert.ok(written === recipeTypeSource(everyMethod), "run: npm run build && node scripts/make-recipe-docs.mjs");
  const base = { model_name_or_path: "m", dataset: ["a.jsonl", "b.jsonl"], output_dir: "o" };
  const fine: RecipeSettings = {
    ...base,
    finetuning_type: "qlora",
    lora_rank: 4,
    lora_target: ["q_proj"],
    threads: 2,
    labels: null,
  };
  // @ts-expect-error: no such setting
  const misspelt: RecipeSettings = { ...base, lora_rnk: 4 };
  // @ts-expect-error: no such method
  const unknown: RecipeSettings = { ...base, finetuning_type: "lorra" };
  // @ts-expect-error: a number
  const text: RecipeSettings = { ...base, lora_rank: "4" };
  // @ts-expect-error: a recipe needs data
  const empty: RecipeSettings = { model_name_or_path: "m", output_dir: "o" };
  assert.equal(checkRecipe(fine, everyMethod).recipe.tuner.lora_rank, 4);
  for (const wrong of [misspelt, unknown, text, empty]) assert.throws(() => checkRecipe(wrong, everyMethod), ConfigError);
});

test("every setting is documented once", () => {
  const lines = recipeDocs(everyMethod).split("\n");
  for (const key of [
    ...Object.keys(keySchemas(RecipeKeys)),
    "lora_rank",
    "freeze_trainable_layers",
    "threads",
    "compute_dtype",
  ]) {
    assert.equal(lines.filter((line) => line.startsWith(`| \`${key}\` |`)).length, 1, key);
  }
});

test("the methods of attune fit into one recipe", () => {
  const { recipe } = parseRecipe(undefined, ["model=m", "dataset=d", "output_dir=o", "lora_rank=3", "threads=2"], everyMethod);
  assert.equal(recipe.tuner.lora_rank, 3);
  assert.equal(recipe.backendConfig.threads, 2);
  const names = Object.values(axesOf(everyMethod))
    .flat()
    .flatMap(({ config }) => (config ? Object.keys(keySchemas(config)) : []));
  for (const name of names) assert.ok(!(name in RecipeKeys.shape), `${name} is a setting of every run, too`);
});
