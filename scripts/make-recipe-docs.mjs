/** Writes docs/recipe.md from the built schema: `npm run build && node scripts/make-recipe-docs.mjs`. */
import { writeFileSync } from "node:fs";

const { recipeDocs } = await import(new URL("../dist/src/recipe/docs.js", import.meta.url));
writeFileSync(new URL("../docs/recipe.md", import.meta.url), recipeDocs());
