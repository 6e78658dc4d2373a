import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";
import { everyMethod } from "../src/backends/index.js";
import { recipeDocs } from "../src/recipe/docs.js";
import { parseRecipe } from "../src/recipe/parse.js";
import { axesOf, keySchemas, RecipeKeys } from "../src/recipe/schema.js";

test("docs/recipe.md is what the schema gives", async () => {
  const written = await readFile(new URL("../../docs/recipe.md", import.meta.url), "utf8"); // from dist/test
  assert.equal(written, recipeDocs(everyMethod), "run: npm run build && node scripts/make-recipe-docs.mjs");
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
