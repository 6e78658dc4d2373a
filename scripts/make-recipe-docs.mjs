/** Writes docs/recipe.md from the built schema: `npm run build && node scripts/make-recipe-docs.mjs`. */
import { writeFileSync } from "node:fs";

const built = (path) => import(new URL(`../dist/src/${path}`, import.meta.url));
const [{ recipeDocs }, { everyMethod }] = await Promise.all([built("recipe/docs.js"), built("backends/index.js")]);
writeFileSync(new URL("../docs/recipe.md", import.meta.url), recipeDocs(everyMethod));
