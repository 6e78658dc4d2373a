/** Writes docs/data.md from the built lists: `npm run build && node scripts/make-data-docs.mjs`. */
import { writeFileSync } from "node:fs";

const { dataDocs } = await import(new URL("../dist/src/data/docs.js", import.meta.url));
writeFileSync(new URL("../docs/data.md", import.meta.url), dataDocs());
