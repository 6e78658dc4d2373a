import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import fc from "fast-check";
import { loadDataset, tokenizeDataset } from "../src/data/dataset.js";
import { anyRow } from "../src/data/testing/datasets.js";
import { DataError } from "../src/errors.js";
import { ChatTemplate } from "../src/text/chat-template.js";
import { chooseTemplate } from "../src/text/templates.js";
import { byteLevel as tokenizer } from "../src/text/testing/byte-level.js";
import { compareShapes, type Shapes } from "./support/data-shapes.js";

const fixture = new URL("../../test/fixtures/data-shapes.json", import.meta.url); // from dist/test
const shapes = JSON.parse(readFileSync(fixture, "utf8")) as Shapes;

test("rows of eight public shapes are written and learned as transformers and LLaMA-Factory do, or refused where these drop words", async () => {
  assert.equal(Object.keys(shapes.rows).length, 8);
  const { equal, refused } = await compareShapes(shapes);
  assert.deepEqual([equal, refused], [73, 13]);
});

test("rows of any JSON become tokens under any template, or are left out and counted: nothing else comes of them", async () => {
  const folder = mkdtempSync(join(tmpdir(), "attune-rows-"));
  const named = ["qwen3", "llama3", "mistral"].map((name) => chooseTemplate(tokenizer, { name }).template);
  const own = Object.entries(shapes.templates).map(
    ([origin, source]) => new ChatTemplate(source, { roles: tokenizer.roles, origin }),
  );
  const good = Object.values(shapes.rows).flat();
  // Good rows with one of their values replaced by anything come further than rows of anything.
  const bentRow = fc
    .tuple(fc.constantFrom(...good), anyRow, fc.nat())
    .map(([row, other, at]) => bend(structuredClone(row), Object.values(other)[0], at));
  let examplesMade = 0;
  try {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.oneof(anyRow, bentRow, bentRow), { minLength: 1, maxLength: 12 }),
        fc.constantFrom(...named, ...own),
        async (rows, template) => {
          writeFileSync(join(folder, "rows.jsonl"), rows.map((row) => JSON.stringify(row)).join("\n"));
          try {
            const loaded = await loadDataset({ dataset: "rows.jsonl", datasetDir: folder, onBadRow: "skip" });
            assert.equal(loaded.conversations.length + loaded.bad.length, rows.length);
            const options = { cutoffLen: 50, onBadRow: "skip" } as const;
            const { examples, report } = await tokenizeDataset(loaded.conversations, { tokenizer, template }, options);
            assert.equal(examples.length + report.leftOut.length, loaded.conversations.length);
            examplesMade += examples.length;
          } catch (error) {
            assert.ok(error instanceof DataError, error instanceof Error ? error.stack : String(error));
          }
        },
      ),
      { numRuns: 400 },
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
  assert.ok(examplesMade > 100, `${examplesMade} rows became tokens`);
});

/** Puts `value` in the place of the `at`-th of all values in `row`, however deep. */
function bend(row: object, value: unknown, at: number): object {
  const places: [holder: Record<string, unknown>, key: string][] = [];
  const visit = (holder: object) => {
    for (const [key, item] of Object.entries(holder)) {
      places.push([holder as Record<string, unknown>, key]);
      if (typeof item === "object" && item !== null) visit(item);
    }
  };
  visit(row);
  const [holder, key] = places[at % places.length]!;
  holder[key] = value;
  return row;
}
