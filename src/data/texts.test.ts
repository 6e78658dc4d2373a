import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after, before } from "node:test";
import { loadRows } from "./dataset.js";
import { labelledTexts } from "./labelled-texts.js";
import { texts } from "./texts.js";

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "attune-texts-"));
});
after(() => rm(folder, { recursive: true }));

async function write(name: string, contents: string): Promise<{ dataset: string; datasetDir: string }> {
  await writeFile(join(folder, name), contents);
  return { dataset: name, datasetDir: folder };
}

const lines = (...rows: object[]) => rows.map((row) => JSON.stringify(row)).join("\n");

test("plain texts: a column of JSON lines, the lines of a .txt file, or the column that dataset_info.json names", async () => {
  const json = await loadRows(await write("a.jsonl", lines({ text: "one" }, { text: "[two]\nlines" })), texts);
  assert.deepEqual(json.rows, [
    { text: "one", where: "a.jsonl:1" },
    { text: "[two]\nlines", where: "a.jsonl:2" },
  ]);
  const plain = await loadRows(await write("b.txt", "[first]\r\n\n   \n{second}"), texts);
  assert.deepEqual(plain.rows, [
    { text: "[first]", where: "b.txt:1" },
    { text: "{second}", where: "b.txt:4" },
  ]);
  assert.equal((await loadRows({ ...(await write("b.txt", "1\n2\n3")), maxSamples: 2 }, texts)).rows.length, 2);

  await write("c.jsonl", lines({ raw: "three", text: "no" }));
  await write("dataset_info.json", JSON.stringify({ c: { file_name: "c.jsonl", columns: { prompt: "raw" } } }));
  assert.equal((await loadRows({ dataset: "c", datasetDir: folder }, texts)).rows[0]!.text, "three");
  await rm(join(folder, "dataset_info.json"));
});

test("labelled texts: GLUE's and Alpaca's columns, labels of every kind", async () => {
  const load = async (...rows: object[]) =>
    (await loadRows(await write("l.jsonl", lines(...rows)), labelledTexts)).rows.map(({ text, label }) => [text, label]);
  assert.deepEqual(await load({ sentence: "a", label: 1, idx: 7 }), [["a", "1"]]);
  assert.deepEqual(await load({ text: "a", label: " yes " }, { text: "b", label: true }), [
    ["a", "yes"],
    ["b", "true"],
  ]);
  assert.deepEqual(await load({ instruction: "Which?", input: "a", output: "x" }, { instruction: "b", input: "", output: "y" }), [
    ["Which?\na", "x"],
    ["b", "y"],
  ]);
});

test("rows that are no texts, or have no class, are refused with place and remedy", async () => {
  const cases = [
    [texts, { body: "a" }, /x\.jsonl:1: there is no column "text"\. The row has "body"\. .*dataset_info\.json.*"prompt"/],
    [texts, { text: 7 }, /"text" has to be text, got the number 7/],
    [texts, { text: " " }, /"text" is empty/],
    [labelledTexts, { text: "a", sentiment: 1 }, /expected a text .* and a label .*The row has "text", "sentiment"/],
    [labelledTexts, { text: "a", label: 0.5 }, /"label" has to be a text or a whole number.* got the number 0\.5/],
    [labelledTexts, { text: "a", label: "" }, /"label" is empty/],
    [labelledTexts, { sentence1: "a", sentence2: "b", label: 0 }, /"sentence2" makes pairs of texts, which are not supported/],
  ] as const;
  for (const [format, row, message] of cases)
    await assert.rejects(async () => loadRows<{ where: string }, never>(await write("x.jsonl", lines(row)), format as never), {
      code: "DATA",
      message,
    });
});
