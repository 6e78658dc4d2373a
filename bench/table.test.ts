import assert from "node:assert/strict";
import test from "node:test";
import { formatMarkdown, formatTable } from "./table.js";

const rows = [
  ["decode", "9", ""],
  ["a | b", "10.5", "✓"],
];

test("columns line up under their headings, without spaces at the end", () => {
  assert.equal(
    formatTable(["work", "attune", "target"], rows),
    ["work    attune  target", "──────  ──────  ──────", "decode  9", "a | b   10.5    ✓"].join("\n"),
  );
});

test("Markdown keeps a bar in a cell apart from the table's own", () => {
  assert.equal(
    formatMarkdown(["work", "attune", "target"], rows),
    ["| work | attune | target |", "| --- | --- | --- |", "| decode | 9 |  |", "| a \\| b | 10.5 | ✓ |"].join("\n"),
  );
});
