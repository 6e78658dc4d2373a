/**
 * Writes docs/recipe.md, the tables of docs/from-llama-factory.md and its Chinese page, and src/recipe/recipe-settings.ts from the built schemas:
 * `npm run build && node scripts/make-recipe-docs.mjs`.
 */
import { readFileSync, writeFileSync } from "node:fs";

const built = (path) => import(new URL(`../dist/src/${path}`, import.meta.url));
const at = (path) => new URL(`../${path}`, import.meta.url);
const [{ recipeDocs }, { recipeTypeSource }, { withKeys }, { everyMethod }] = await Promise.all([
  built("recipe/docs.js"),
  built("recipe/type-source.js"),
  built("recipe/from-llama-factory.js"),
  built("backends/index.js"),
]);
writeFileSync(at("docs/recipe.md"), recipeDocs(everyMethod));
writeFileSync(at("src/recipe/recipe-settings.ts"), recipeTypeSource(everyMethod));

const { keys } = JSON.parse(readFileSync(at("test/fixtures/llama-factory-keys.json"), "utf8"));
for (const [page, language] of [
  ["docs/from-llama-factory.md", "en"],
  ["docs/from-llama-factory.zh.md", "zh"],
])
  writeFileSync(at(page), withKeys(readFileSync(at(page), "utf8"), keys, everyMethod, language));
