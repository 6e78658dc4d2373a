#!/usr/bin/env node
import { existsSync } from "node:fs";

const entry = new URL("../dist/src/cli/attune.js", import.meta.url);
if (!existsSync(entry)) {
  console.error("attune: not built yet. Run this in its folder first: npm run build");
  process.exit(1);
}
await import(entry.href);
