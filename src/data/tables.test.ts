import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after } from "node:test";
import { Rng } from "../core/rng.js";
import { DataError } from "../errors.js";
import { loadDataset, loadRows } from "./dataset.js";
import { labelledTexts } from "./labelled-texts.js";
import { readRows } from "./read-rows.js";

const fixtures = "test/fixtures/tables";
const expected = JSON.parse(await readFile(join(fixtures, "expected.json"), "utf8")) as Record<string, unknown[]>;
const folder = await mkdtemp(join(tmpdir(), "attune-tables-"));
after(() => rm(folder, { recursive: true }));

async function rowsOf(path: string, maxRows?: number) {
  const rows: unknown[] = [];
  for await (const row of readRows(path, maxRows)) rows.push("value" in row ? plain(row.value) : row);
  return rows;
}

/** Without prototypes, and bytes as the fixtures write them. */
function plain(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value, (_, item) => (item instanceof Uint8Array ? { bytes: [...item] } : item)));
}

async function rowsIn(name: string, contents: string | Buffer) {
  await writeFile(join(folder, name), contents);
  return rowsOf(join(folder, name));
}

for (const [name, rows] of Object.entries(expected))
  test(`${name} is read as pandas and datasets read it`, async () => {
    assert.deepEqual(await rowsOf(join(fixtures, name)), rows);
    assert.deepEqual(await rowsOf(join(fixtures, name), 1), rows.slice(0, 1));
  });

test("conversations, answers and labels are found in tables as in JSON", async () => {
  const load = (dataset: string) => loadDataset({ dataset, datasetDir: fixtures });
  const { conversations } = await load("sharegpt.parquet");
  assert.equal(conversations[1]?.where, "sharegpt.parquet, row 2");
  assert.deepEqual(
    conversations[1]?.messages.map(({ role }) => role),
    ["system", "user", "assistant", "user", "assistant", "user", "assistant"],
  );
  const calls = await load("messages.parquet");
  assert.deepEqual(plain(calls.conversations[0]?.messages[1]?.tool_calls), [
    { type: "function", function: { name: "weather", arguments: { city: "Rome" } } },
  ]);
  assert.deepEqual(calls.notices, []);
  assert.deepEqual((await load("plain.csv")).conversations[0], {
    messages: [
      { role: "user", content: "Add.\n2 + 2" },
      { role: "assistant", content: "4" },
    ],
    where: "plain.csv:2",
  });
  const labelled = await loadRows({ dataset: "labels.csv", datasetDir: fixtures }, labelledTexts);
  assert.deepEqual(
    labelled.rows.map(({ label }) => label),
    ["1", "2.0", "True", "007", "2026-05-01"],
  );
});

test("an entry of dataset_info.json names the columns of a table", async () => {
  await writeFile(join(folder, "qa.csv"), "frage,antwort\nWer?,Ich.\n");
  const entry = { file_name: "qa.csv", columns: { prompt: "frage", response: "antwort" } };
  await writeFile(join(folder, "dataset_info.json"), JSON.stringify({ qa: entry }));
  const { conversations } = await loadDataset({ dataset: "qa", datasetDir: folder });
  assert.equal(conversations[0]?.messages[1]?.content, "Ich.");
});

test("a bad row of CSV is named by its line, and the others are read", async () => {
  const bad = (text: string | Buffer) => rowsIn("bad.csv", text);
  assert.deepEqual(await bad('a,b\n1,"x\n\ny"\n1,2,3\n"p"q,2\n5,6\n'), [
    { a: "1", b: "x\n\ny" },
    {
      where: "bad.csv:5",
      reason:
        "the row has 3 cells, and the first line names 2 columns; put a text with commas or line breaks in quotation marks.",
    },
    {
      where: "bad.csv:6",
      reason: 'in cell 1, "q,2" stands behind a closing quotation mark; a mark inside a text is written twice ("").',
    },
    { a: "5", b: "6" },
  ]);
  const broken = Buffer.concat([Buffer.from('a\n"x\r\n'), Buffer.from([0xe9]), Buffer.from('"\ny\n')]);
  assert.deepEqual(await bad(broken), [
    { where: "bad.csv:3", reason: "not UTF-8: byte 0xe9 at offset 6. Save the file as UTF-8." },
    { a: "y" },
  ]);
  const long = `a\n"${"x".repeat(33 * 2 ** 20)}"\ny\n`; // longer than a row may be, over many chunks
  assert.deepEqual(await bad(long), [
    { where: "bad.csv:2", reason: "the row has 34603010 bytes, more than the 33554432 allowed." },
    { a: "y" },
  ]);
});

test("a table of which nothing can be read says why", async () => {
  for (const [name, contents, message] of [
    ["x.csv", "", /x.csv: the file is empty/],
    ["x.csv", "\n \n", /the file is empty/],
    ["x.csv", "a,b\n", /there are no rows below the names/],
    ["x.csv", "a;b\n1;2\n", /x.csv:1: the first line seems to name columns with ";" between/],
    ["x.tsv", "a,b\n1,2\n", /columns with "," between/],
    ["x.csv", "a,a\n1,2\n", /two columns are called "a"/],
    ["x.csv", 'a,b\n1,"2\n3,4\n', /the row of line 2 opens a quotation mark that is never closed/],
    ["x.csv", "\xff\xfea\0,\0", /UTF-16/],
    ["x.parquet", "a,b\n1,2\n", /no Parquet: it does not begin with PAR1/],
    ["x.parquet", "PAR1", /cut off|is missing/],
    ["x.parquet", "PAR1\x15\x04\x15\x10", /does not end with PAR1/],
    ["x.parquet", "PAR1\x00\xff\xff\xff\xffPAR1", /4294967295 bytes, more than/],
    ["x.parquet", "PAR1\x00\xff\x00\x00\x00PAR1", /no bytes -\d+ to/],
    ["x.parquet", "PAR1\x00\x00\x00\x00\x00PAR1", /a description without an end/],
  ] as const)
    await assert.rejects(rowsIn(name, Buffer.from(contents, "latin1")), (error) => {
      assert.ok(error instanceof DataError);
      assert.match(error.message, message);
      return true;
    });
});

test("a small file that unpacks to much is refused before it does", async () => {
  for (const name of ["repeated-text.parquet", "many-rows.parquet"]) {
    const before = process.memoryUsage().rss;
    const readAll = async () => {
      for await (const row of readRows(join(fixtures, name))) assert.ok("value" in row);
    };
    await assert.rejects(readAll, { code: "DATA", message: /do not fit into Node's memory/ });
    assert.ok(process.memoryUsage().rss - before < 5e8, name);
  }
  assert.equal((await rowsOf(join(fixtures, "repeated-text.parquet"), 2)).length, 2);
});

test("damaged Parquet is a DataError or other rows, and nothing else", async () => {
  const rng = Rng.for(1, "damage");
  const path = join(folder, "damaged.parquet");
  for (const name of Object.keys(expected).filter((each) => each.endsWith(".parquet"))) {
    const whole = await readFile(join(fixtures, name));
    for (let i = 0; i < 20; i++) {
      const bytes = Buffer.from(whole.subarray(0, rng.below(4) === 0 ? rng.below(whole.length) : whole.length));
      for (let k = 0; k < 3 && bytes.length > 0; k++) bytes[rng.below(bytes.length)] = rng.below(2) === 0 ? 0xff : rng.below(256);
      await writeFile(path, bytes);
      await rowsOf(path).catch((error) => assert.ok(error instanceof DataError, error));
    }
  }
});
