import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { compareShapes, type Shapes } from "./support/data-shapes.js";

test("rows of eight public shapes are written and learned as transformers and LLaMA-Factory do, or refused where these drop words", async () => {
  const fixture = new URL("../../test/fixtures/data-shapes.json", import.meta.url); // from dist/test
  const shapes = JSON.parse(readFileSync(fixture, "utf8")) as Shapes;
  assert.equal(Object.keys(shapes.rows).length, 8);
  const { equal, refused } = await compareShapes(shapes);
  assert.deepEqual([equal, refused], [73, 13]);
});
