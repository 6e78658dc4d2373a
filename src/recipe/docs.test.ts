import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";
import { recipeDocs } from "./docs.js";
import { keySchemas, RecipeKeys } from "./schema.js";

test("docs/recipe.md is what the schema gives", async () => {
  const written = await readFile(new URL("../../../docs/recipe.md", import.meta.url), "utf8"); // from dist/src/recipe
  assert.equal(written, recipeDocs(), "run: npm run build && node scripts/make-recipe-docs.mjs");
});

test("every setting is documented once", () => {
  const lines = recipeDocs().split("\n");
  for (const key of [...Object.keys(keySchemas(RecipeKeys)), "lora_rank", "freeze_trainable_layers"]) {
    assert.equal(lines.filter((line) => line.startsWith(`| \`${key}\` |`)).length, 1, key);
  }
});
