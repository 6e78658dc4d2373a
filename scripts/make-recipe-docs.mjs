/** Writes docs/recipe.md and src/recipe/recipe-settings.ts from the built schemas: `npm run build && node scripts/make-recipe-docs.mjs`. */
import { writeFileSync } from "node:fs";

const built = (path) => import(new URL(`../dist/src/${path}`, import.meta.url));
const [{ recipeDocs }, { recipeTypeSource }, { everyMethod }] = await Promise.all(
  ["recipe/docs.js", "recipe/type-source.js", "backends/index.js"].map(built),
);
writeFileSync(new URL("../docs/recipe.md", import.meta.url), recipeDocs(everyMethod));
writeFileSync(new URL("../src/recipe/recipe-settings.ts", import.meta.url), recipeTypeSource(everyMethod));
