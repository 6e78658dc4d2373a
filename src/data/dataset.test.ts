import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { ConfigError, DataError } from "../errors.js";
import { ChatTemplate } from "../text/chat-template.js";
import { chooseTemplate } from "../text/templates.js";
import { loadDataset, splitHoldout, tokenizeDataset } from "./dataset.js";
import { byteChat, previewRow } from "./preview.js";
import { readRows } from "./read-rows.js";

const folder = await mkdtemp(join(tmpdir(), "attune-data-"));
after(() => rm(folder, { recursive: true }));

/** Writes a file and reads it as a data set. */
async function load(name: string, contents: string | Buffer, options: { onBadRow?: "error" | "skip"; maxSamples?: number } = {}) {
  await writeFile(join(folder, name), contents);
  return loadDataset({ dataset: name, datasetDir: folder, ...options });
}

async function loadValue(value: unknown) {
  return load("rows.json", JSON.stringify(value));
}

const chat = byteChat();
const alpacaRow = { instruction: "Add.", input: "2 + 2", output: "4" };

test("every format becomes the same conversation", async () => {
  const expected = [
    { role: "system", content: "S" },
    { role: "user", content: "Q" },
    { role: "assistant", content: "A" },
  ];
  const rows: unknown[] = [
    { instruction: "Q", input: "", output: "A", system: "S" },
    { instruction: "", input: "Q", output: "A", system: "S" },
    { prompt: "Q", completion: "A", system: "S" },
    { question: "Q", answer: "A", system: "S" },
    {
      conversations: [
        { from: "system", value: "S" },
        { from: "human", value: "Q" },
        { from: "gpt", value: "A" },
      ],
    },
    {
      conversations: [
        { from: "human", value: "Q" },
        { from: "gpt", value: "A" },
      ],
      system: "S",
    },
    {
      messages: [
        { role: "developer", content: "S" },
        { role: "user", content: [{ type: "text", text: "Q" }] },
        { role: "assistant", content: "A" },
      ],
    },
    {
      conversation: [
        { role: "system", content: "S" },
        { role: "user", content: "Q" },
        { role: "assistant", content: "A" },
      ],
    },
  ];
  for (const row of rows) {
    for (const text of [JSON.stringify([row]), JSON.stringify([row], null, 2), `\uFEFF${JSON.stringify(row)}\r\n\r\n`]) {
      const { conversations, rowsRead } = await load("one.json", text);
      assert.deepEqual(conversations[0]?.messages, expected, text);
      assert.equal(rowsRead, 1);
    }
  }
});

test("Alpaca joins instruction and input, and puts history first", async () => {
  const { conversations } = await loadValue([alpacaRow, { ...alpacaRow, history: [["Hi", "Hello"]] }]);
  assert.deepEqual(
    conversations[0]?.messages.map(({ content }) => content),
    ["Add.\n2 + 2", "4"],
  );
  assert.deepEqual(
    conversations[1]?.messages.map(({ content }) => content),
    ["Hi", "Hello", "Add.\n2 + 2", "4"],
  );
});

test("rows are named by line in JSON lines and by number in arrays", async () => {
  const lines = await load("a.jsonl", `${JSON.stringify(alpacaRow)}\n\n${JSON.stringify(alpacaRow)}\n`);
  assert.deepEqual(
    lines.conversations.map(({ where }) => where),
    ["a.jsonl:1", "a.jsonl:3"],
  );
  const array = await loadValue([alpacaRow, alpacaRow]);
  assert.deepEqual(
    array.conversations.map(({ where }) => where),
    ["rows.json, row 1", "rows.json, row 2"],
  );
});

test("what cannot be learned from is refused, with place and remedy", async () => {
  const user = { role: "user", content: "Q" };
  const faults: [RegExp, unknown][] = [
    [/row 1: no known columns. The row has "a", "b"..*dataset_info.json: .*"columns"/, [{ a: 1, b: 2 }]],
    [/plain "text", without questions/, [{ text: "T" }]],
    [/"chosen" and "rejected".*preference data/, [{ prompt: "Q", chosen: "A", rejected: "B" }]],
    [/true\/false "label": KTO/, [{ messages: [user], label: true }]],
    [/neither "from" and "value".*tags/, [{ messages: [{ speaker: "x", words: "y" }] }]],
    [/"messages" has to be a list of messages, got an empty list/, [{ messages: [] }]],
    [/row 2: the column "output" is missing .*The row has "instruction", "input"/, [alpacaRow, { instruction: "Q", input: "" }]],
    [/row 2: "output" has to be text, got the number 4/, [alpacaRow, { ...alpacaRow, output: 4 }]],
    [/row 2: "output" has to be text, got null/, [alpacaRow, { ...alpacaRow, output: null }]],
    [/row 2: "output" is empty/, [alpacaRow, { ...alpacaRow, output: " \n" }]],
    [/row 2: "instruction" and "input" are empty/, [alpacaRow, { instruction: "", input: "", output: "A" }]],
    [/row 2: "output" holds half a character/, [alpacaRow, { ...alpacaRow, output: "\ud800" }]],
    [/row 1: "history" item 1 has to be/, [{ ...alpacaRow, history: ["x"] }]],
    [/row 1: "history" has to be a list/, [{ ...alpacaRow, history: "x" }]],
    [/row 2: expected an object with columns, got \[1\]/, [alpacaRow, [1]]],
    [/row 1: expected an object with columns, got null/, [null]],
    [
      /row 1: message 1 has the role "narrator"; expected one of system,.*tags/,
      [{ messages: [{ role: "narrator", content: "x" }] }],
    ],
    [/row 1: message 2 has no "content"/, [{ messages: [user, { role: "assistant" }] }]],
    [
      /row 1: message 2 has no "content" and calls nothing/,
      [{ messages: [user, { role: "assistant", content: null, tool_calls: [] }] }],
    ],
    [
      /row 1: message 2 has a part of type "image_url"/,
      [{ messages: [user, { role: "assistant", content: [{ type: "image_url" }] }] }],
    ],
    [/row 1: message 2 has to be an object, got the string x/, [{ messages: [user, "x"] }]],
    [/row 1: the assistant says nothing/, [{ messages: [user] }]],
    [
      /row 2: the column "output" is missing \(or response, completion, answer\)/,
      [{ messages: [user, { role: "assistant", content: "A" }] }, { instruction: "Q" }],
    ],
    [/row 2: .*\(1 more rows of 3 cannot be used either\)/, [alpacaRow, { instruction: "Q" }, { instruction: "Q" }]],
    [/the list of rows is empty/, []],
  ];
  for (const [message, value] of faults) await assert.rejects(loadValue(value), { code: "DATA", message }, String(message));
});

test("files that are no data are refused, with the place in them", async () => {
  const good = JSON.stringify(alpacaRow);
  const faults: [RegExp, string | Buffer][] = [
    [/file is empty/, ""],
    [/file is empty/, "\n \r\n\t"],
    [/file is empty/, "\uFEFF"],
    [/expected a JSON array.*begins with "Once upon a time/, "Once upon a time there was a fox"],
    [
      /x.json:2: not UTF-8: byte 0xff at offset 9/,
      Buffer.concat([Buffer.from('[{"a": 1}\n'.slice(0, 8)), Buffer.from([0x0a, 0xff, 0x5d])]),
    ],
    [/x.json:1: not UTF-8: byte 0xed at offset 3/, Buffer.from([0x5b, 0x22, 0x61, 0xed, 0xa0, 0x80, 0x22, 0x5d])],
    [/x.json:1: not UTF-8: byte 0xe4 at offset 2/, Buffer.from([0x5b, 0x22, 0xe4, 0xbd])],
    [/UTF-16.*iconv/, Buffer.from(`\uFEFF[${good}]`, "utf16le")],
    [/UTF-16/, Buffer.from(`[${good}]`, "utf16le")],
    [/UTF-16/, Buffer.from(`[${good}]`, "utf16le").swap16()],
    [/x.json:3: not valid JSON/, `[\n${good},\n oops ]`],
    [/x.json:2: not valid JSON/, `[${good},\n`],
    [/x.json:2: not valid JSON/, `[\n{"instruction": NaN}]`],
    [/x.json:2: not valid JSON: .* in column \d+/, `${good}\n{"instruction": "x",}\n`],
    [/x.json:2: not valid JSON: control character/, `${good}\n{"instruction": "a\u0000b"}\n`],
    [/x.json:2: expected an object with columns, got 7/, `${good}\n7\n`],
    [/one JSON object has no rows: write an array/, `{\n "data": [${good}]\n}`],
    [/x.json:2: the row has \d+ bytes/, `${good}\n{"a":"${"x".repeat(2 ** 25)}"}\n`],
  ];
  for (const [message, contents] of faults)
    await assert.rejects(load("x.json", contents), { code: "DATA", message }, String(message));
  await assert.rejects(loadDataset({ dataset: folder }), { code: "DATA", message: /this is a folder/ });
});

test("random bytes never crash, and every row is accounted for", async () => {
  const line = fc.oneof(
    fc.constant(JSON.stringify(alpacaRow)),
    fc.json(),
    fc.string({ unit: "binary" }),
    fc.constant('{"instruction": "Q", "output": "\\ud800"}'),
    fc.constant(""),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(line, { maxLength: 8 }), fc.boolean(), async (lines, isFirstGood) => {
      const all = isFirstGood ? [JSON.stringify(alpacaRow), ...lines] : lines;
      const text = all.map((each) => each.replaceAll("\n", " ")).join("\n");
      try {
        const { conversations, bad, rowsRead } = await load("fuzz.jsonl", text, { onBadRow: "skip" });
        const rows = text.split("\n").filter((each) => [...Buffer.from(each)].some((byte) => byte > 0x20)).length;
        assert.equal(conversations.length + bad.length, rows);
        assert.equal(rowsRead, rows);
      } catch (error) {
        assert.ok(error instanceof DataError, String(error));
      }
    }),
    { numRuns: 150 },
  );
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 60 }), async (bytes) => {
      await assert.rejects(load("fuzz.bin", Buffer.from(bytes)), DataError);
    }),
    { numRuns: 150 },
  );
});

test("each row shows its own layout: an odd first row decides nothing, and a mixture is told", async () => {
  const chatRow = {
    messages: [
      { role: "user", content: "Add." },
      { from: "gpt", value: "4" },
    ],
  };
  const lines = [{ id: 0, text: "odd" }, alpacaRow, chatRow, { ...alpacaRow, system: "S" }]
    .map((row) => JSON.stringify(row))
    .join("\n");
  const { conversations, bad, notices } = await load("mixed.jsonl", lines, { onBadRow: "skip" });
  assert.deepEqual(
    conversations.map(({ messages }) => messages.map(({ content }) => content)),
    [
      ["Add.\n2 + 2", "4"],
      ["Add.", "4"],
      ["S", "Add.\n2 + 2", "4"],
    ],
  );
  assert.equal(bad.length, 1);
  assert.match(
    notices.join("\n"),
    /mixed.jsonl: the file mixes layouts: 2 rows with "instruction" and "output", 1 rows with "messages"/,
  );
});

test("every kind of bad row is left out under skip, in lines and in arrays, and each is named otherwise", async () => {
  const good = JSON.stringify(alpacaRow);
  const nested = (depth: number) => `${"[".repeat(depth)}${"]".repeat(depth)}`;
  const bad: [RegExp, string | Buffer][] = [
    [/nested too deeply/, `{"messages": [{"role": "user", "content": ${nested(1e5)}}]}`],
    [/nested too deeply/, nested(1e5)],
    [/not valid JSON/, '{"instruction": NaN, "output": "A"}'],
    [/duplicate key "output"/, '{"instruction": "Q", "output": "A", "output": "B"}'],
    [/half a character/, '{"instruction": "Q", "output": "\\ud800"}'],
    [/not UTF-8: byte 0xff at offset \d+/, Buffer.from('{"instruction": "Q", "output": "\xff"}', "latin1")],
    [/expected an object with columns, got "x"/, '"x"'],
    [/has to be text, got the number 7/, '{"instruction": "Q", "output": 7}'],
    [/has to be text, got an object/, '{"instruction": {"a": 1}, "output": "A"}'],
    [/the row has \d+ bytes, more than/, `{"instruction": "Q", "output": "${"x".repeat(33 * 2 ** 20)}"}`],
    [/the row has \d+ characters, more than/, `{"instruction": "Q", "output": "${"x ".repeat(2 ** 20)}"}`],
    [/a word of 200000 characters, more than/, `{"instruction": "Q", "output": "${"x".repeat(2e5)}"}`],
  ];
  const inOne = (parts: readonly (string | Buffer)[], between: string) =>
    Buffer.concat(parts.flatMap((part, i) => (i === 0 ? [] : [Buffer.from(between)]).concat(Buffer.from(part as string))));
  const all = [good, ...bad.map(([, source]) => source), good];
  for (const [name, contents] of [
    ["bad.jsonl", inOne(all, "\n")],
    ["bad.json", inOne(["[", inOne(all, ",\n"), "]"], "")],
  ] as const) {
    const { conversations, bad: found, rowsRead, notices } = await load(name, contents, { onBadRow: "skip" });
    assert.deepEqual([conversations.length, found.length, rowsRead], [2, bad.length, bad.length + 2], name);
    for (const [i, [message]] of bad.entries()) assert.match(found[i]!.reason, message, name);
    assert.match(notices.join(), new RegExp(`${bad.length} of ${bad.length + 2} rows are left out, the first ${name}`));
  }
  for (const [message, source] of bad) {
    await assert.rejects(load("one.jsonl", inOne([good, source], "\n")), { code: "DATA", message: /^one\.jsonl:2: / });
    await assert.rejects(load("one.json", inOne(["[", good, ",\n", source, "]"], "")), { code: "DATA", message });
  }
  for (const text of [`[${good} ${good}]`, `[${good}]]`, `[${good},]`, `[,${good}]`, `[${good}}`, `[${good}] x`])
    await assert.rejects(load("broken.json", text), { code: "DATA", message: /^broken\.json:1: not valid JSON/ }, text);
});

test("files are read chunk by chunk: a row may lie in several", async () => {
  const text = (i: number) => `${i} "é[{,\\${"x".repeat((i * 7919) % 90_000)}`;
  const rows = Array.from({ length: 100 }, (_, i) => ({ instruction: text(i), output: "A" }));
  for (const contents of [
    JSON.stringify(rows),
    JSON.stringify(rows, null, 2),
    rows.map((row) => JSON.stringify(row)).join("\n"),
  ]) {
    const { conversations } = await load("chunks.json", contents);
    assert.deepEqual(
      conversations.map(({ messages }) => messages[0]!.content),
      rows.map(({ instruction }) => instruction),
    );
  }
  const late = await load("late.jsonl", `${"\n".repeat(3 * 2 ** 20)}${JSON.stringify(alpacaRow)}\n{oops`, { onBadRow: "skip" });
  assert.equal(late.conversations[0]!.where, `late.jsonl:${3 * 2 ** 20 + 1}`);
  assert.equal(late.bad[0]!.where, `late.jsonl:${3 * 2 ** 20 + 2}`);
});

test("what is no file of text is refused at once, whoever names it", { skip: process.platform === "win32" }, async () => {
  const named = (dataset: string) => loadDataset({ dataset, datasetDir: folder });
  execFileSync("mkfifo", [join(folder, "pipe.jsonl")]);
  const socket = createServer().listen(join(folder, "socket"));
  await once(socket, "listening");
  for (const path of ["pipe.jsonl", "socket", "/dev/zero", "/dev/urandom"])
    await assert.rejects(named(path), { code: "DATA", message: /a pipe, a socket or a device|cannot be read/ }, path);
  socket.close();
  await assert.rejects(named("/proc/self/maps"), { code: "DATA", message: /file is empty/ });
  await writeFile(join(folder, "sparse.jsonl"), "{");
  await truncate(join(folder, "sparse.jsonl"), 8e9); // 8 GB that take no room
  await assert.rejects(named("sparse.jsonl"), { code: "DATA", message: /do not fit into Node's memory/ });
  const packed: [RegExp, Buffer][] = [
    [/gzip; unpack it with gunzip/, gzipSync("[]")],
    [/encrypted Parquet; decrypt/, Buffer.from("PARE\x15\x04")],
    [/ZIP/, Buffer.from("PK\x03\x04\0\0")],
    [/a Python pickle; attune never/, Buffer.from([0x80, 4, 0x95])],
    [/an SQLite database/, Buffer.from("SQLite format 3\0")],
    [/Git LFS/, Buffer.from("version https://git-lfs.github.com/spec/v1\n")],
  ];
  for (const [message, bytes] of packed) await assert.rejects(load("x.jsonl", bytes), { code: "DATA", message });
  await assert.rejects(load("x.tab", "a,b\n1,2\n"), { code: "DATA", message: /ends in .csv.*begins with "a,b/s });
});

test("dataset_info.json leads nowhere else, and what it says and is not used is told", {
  skip: process.platform === "win32",
}, async () => {
  const inside = join(folder, "registry");
  await mkdir(inside);
  await writeFile(join(folder, "outside.json"), JSON.stringify([alpacaRow]));
  await symlink(join(folder, "outside.json"), join(inside, "link.json"));
  const load = async (entry: object) => {
    await writeFile(join(inside, "dataset_info.json"), JSON.stringify({ x: entry }));
    return loadDataset({ dataset: "x", datasetDir: inside });
  };
  for (const file_name of ["../outside.json", "a/../../outside.json", join(folder, "outside.json"), ".."])
    await assert.rejects(load({ file_name }), { code: "CONFIG", message: /leads out of/ }, file_name);
  const { conversations, notices } = await load({ file_name: "./link.json", split: "train", subset: "en" });
  assert.equal(conversations.length, 1);
  assert.match(notices.join(), /x: its entry in .* has keys that are not used: split, subset/);

  await writeFile(join(inside, "dataset_info.json"), `{"x": ${"[".repeat(1e5)}`);
  await assert.rejects(loadDataset({ dataset: "x", datasetDir: inside }), { code: "CONFIG", message: /nested too deeply/ });
  await rm(join(inside, "dataset_info.json"));
  execFileSync("mkfifo", [join(inside, "dataset_info.json")]);
  await assert.rejects(loadDataset({ dataset: "x", datasetDir: inside }), {
    code: "DATA",
    message: /a pipe, a socket or a device/,
  });
});

test("a file that changes while it is read is told", async () => {
  const path = join(folder, "shrinks.jsonl");
  await writeFile(path, `${JSON.stringify(alpacaRow)}\n`.repeat(40_000));
  const rows = readRows(path);
  await rows.next();
  await truncate(path, 100);
  await assert.rejects(async () => {
    for await (const _ of rows);
  }, /became shorter while it was read/);
});

test("bad rows can be left out, and are reported", async () => {
  const { conversations, bad, rowsRead, notices } = await load(
    "skip.jsonl",
    `${JSON.stringify(alpacaRow)}\n{oops\n7\n{"instruction": "Q"}\n`,
    { onBadRow: "skip" },
  );
  assert.deepEqual([conversations.length, bad.length, rowsRead], [1, 3, 4]);
  assert.deepEqual(bad.map(({ where }) => where).sort(), ["skip.jsonl:2", "skip.jsonl:3", "skip.jsonl:4"]);
  assert.match(notices.join(), /3 of 4 rows are left out, the first skip.jsonl:2/);
});

test("max_samples reads the first rows only", async () => {
  const rows = `${JSON.stringify(alpacaRow)}\n${JSON.stringify(alpacaRow)}\n{oops\n`;
  const { conversations, rowsRead } = await load("some.jsonl", rows, { maxSamples: 2 });
  assert.deepEqual([conversations.length, rowsRead], [2, 2]);
  await assert.rejects(load("some.jsonl", rows, { maxSamples: 3 }), DataError);
});

test("names in dataset_info.json", async () => {
  await writeFile(
    join(folder, "qa.json"),
    JSON.stringify([
      { q: "Q", a: "A" },
      { q: "Q2", a: "A2" },
    ]),
  );
  await writeFile(
    join(folder, "chat.json"),
    JSON.stringify([
      {
        turns: [
          { who: "me", says: "Q" },
          { who: "bot", says: "A" },
        ],
      },
    ]),
  );
  const info = {
    qa: { file_name: "qa.json", columns: { prompt: "q", response: "a" } },
    first: { file_name: "qa.json", columns: { prompt: "q", response: "a" }, num_samples: 1 },
    chat: {
      file_name: "chat.json",
      formatting: "sharegpt",
      columns: { messages: "turns" },
      tags: { role_tag: "who", content_tag: "says", user_tag: "me", assistant_tag: "bot" },
    },
    script: { script_url: "evil.py" },
    hub: { hf_hub_url: "org/data" },
    empty: {},
    ranking: { file_name: "qa.json", ranking: true },
    kto: { file_name: "qa.json", columns: { kto_tag: "label" } },
    images: { file_name: "qa.json", columns: { images: "images" } },
    typo: { file_name: "qa.json", columns: { promt: "q" } },
    tag: { file_name: "qa.json", formatting: "sharegpt", tags: { role: "x" } },
    format: { file_name: "qa.json", formatting: "csv" },
    gone: { file_name: "gone.json" },
    wrong: "qa.json",
  };
  await writeFile(join(folder, "dataset_info.json"), JSON.stringify(info));
  const named = (dataset: string | string[]) => loadDataset({ dataset, datasetDir: folder });
  assert.deepEqual(
    (await named("qa, chat,first")).conversations.map(({ messages }) => messages[0]?.content),
    ["Q", "Q2", "Q", "Q"],
  );
  assert.equal((await loadDataset({ dataset: ["qa", "chat"], datasetDir: folder, maxSamples: 1 })).conversations.length, 2);
  assert.equal((await loadDataset({ dataset: join(folder, "a.jsonl"), datasetDir: "/nowhere" })).conversations.length, 2);

  const faults: [string, RegExp, typeof ConfigError | typeof DataError][] = [
    ["script", /script_url runs a downloaded program/, ConfigError],
    ["hub", /on a hub.*hf download --repo-type dataset org\/data/, ConfigError],
    ["empty", /there is no file_name/, ConfigError],
    ["ranking", /preference data/, ConfigError],
    ["kto", /preference data/, ConfigError],
    ["images", /the data has images/, ConfigError],
    ["typo", /unknown key "promt". Did you mean "prompt"/, ConfigError],
    ["tag", /"tags" has the unknown key "role"/, ConfigError],
    ["format", /formatting "csv" is not known/, ConfigError],
    ["gone", /gone.json: there is no such file/, DataError],
    ["wrong", /expected an object with a file_name/, ConfigError],
    ["rankin", /Did you mean "ranking"/, DataError],
    ["__proto__", /there is no such file/, DataError],
    [" , ", /name a file/, ConfigError],
  ];
  for (const [name, message, type] of faults) {
    await assert.rejects(named(name), (error) => error instanceof type && message.test(error.message), name);
  }
  await writeFile(join(folder, "dataset_info.json"), "{");
  await assert.rejects(named("qa"), { code: "CONFIG", message: /dataset_info.json: not valid JSON/ });
  await rm(join(folder, "dataset_info.json"));
});

test("rows that are too long lose their end, are left out or stop the run; each is counted", async () => {
  const long = { instruction: "Q", output: "A".repeat(200) };
  const hopeless = { instruction: "Q".repeat(200), output: "A" };
  const { conversations } = await loadValue([alpacaRow, long, hopeless]);
  const { examples, report } = await tokenizeDataset(conversations, chat, { cutoffLen: 100 });
  assert.deepEqual(
    examples.map(({ ids }) => ids.length <= 100),
    [true, true],
  );
  assert.ok(examples.every(({ supervised, ids }) => supervised.includes(1) && supervised.length === ids.length));
  assert.deepEqual([report.rows, report.examples, report.truncated, report.answersCut, report.leftOut.length], [3, 2, 1, 1, 1]);
  assert.match(report.leftOut[0]!.reason, /no answer begins/);
  assert.equal(
    report.lengthHistogram.reduce((total, [, rows]) => total + rows, 0),
    3,
  );
  assert.equal(
    report.supervisedTokens,
    examples.reduce((total, { supervised }) => total + supervised.reduce((sum, label) => sum + label, 0), 0),
  );
  assert.match(report.notices.join("\n"), /1 of 3 rows are longer than cutoff_len = 100 .* 1 of them lose the end of an answer/);

  const dropped = await tokenizeDataset(conversations, chat, { cutoffLen: 100, onOverlong: "drop" });
  assert.deepEqual([dropped.report.examples, dropped.report.leftOut.length], [1, 2]);
  await assert.rejects(tokenizeDataset(conversations, chat, { cutoffLen: 100, onOverlong: "error" }), {
    code: "DATA",
    message: /rows.json, row 2: .* more than cutoff_len = 100/,
  });
  await assert.rejects(tokenizeDataset(conversations, chat, { cutoffLen: 5 }), { code: "DATA", message: /No row is left/ });
  await assert.rejects(tokenizeDataset([], chat, { cutoffLen: 5 }), { code: "DATA", message: /no rows/ });
});

test("a row that the template refuses or that never ends is named", async () => {
  const { conversations } = await loadValue([alpacaRow, { ...alpacaRow, system: "S" }]);
  const template = (source: string) => ({ ...chat, template: new ChatTemplate(source, { roles: {}, origin: "model" }) });
  const refusing = template(
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
  );
  await assert.rejects(tokenizeDataset(conversations, refusing, { cutoffLen: 99 }), {
    code: "DATA",
    message: /rows.json, row 2: .*no system/,
  });
  const { examples, report } = await tokenizeDataset(conversations, refusing, { cutoffLen: 99, onBadRow: "skip" });
  assert.deepEqual([examples.length, report.leftOut.length, report.rows], [1, 1, 2]);
  assert.match(report.notices.join(), /1 of 2 rows are left out, the first rows.json, row 2: .*no system/);
  const endless = template("{% for i in range(99999) %}{% for j in range(9) %}x{% endfor %}{% endfor %}");
  await assert.rejects(tokenizeDataset(conversations, endless, { cutoffLen: 99 }), {
    code: "DATA",
    message: /rows.json, row 1: .*(stopped|never ends)/,
  });
});

test("answers without an end are told", async () => {
  const { conversations } = await loadValue([alpacaRow]);
  const plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
  const { report } = await tokenizeDataset(
    conversations,
    { ...chat, template: new ChatTemplate(plain, { roles: {}, origin: "plain" }) },
    { cutoffLen: 99 },
  );
  assert.equal(report.withoutEnd, 1);
  assert.match(report.notices.join(), /does not learn to stop/);
});

test("the held-out rows are decided by the seed alone, and both parts keep their order", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 2, max: 60 }),
      fc.double({ min: 0.01, max: 0.9, noNaN: true }),
      fc.nat(),
      (size, share, seed) => {
        const rows = Array.from({ length: size }, (_, i) => i);
        fc.pre(Math.round(size * share) < size);
        const { train, heldOut } = splitHoldout(rows, share, seed);
        assert.equal(heldOut.length, Math.max(1, Math.round(size * share)));
        assert.deepEqual(
          [...train, ...heldOut].sort((a, b) => a - b),
          rows,
        );
        assert.deepEqual(
          train,
          [...train].sort((a, b) => a - b),
        );
        assert.deepEqual(
          heldOut,
          [...heldOut].sort((a, b) => a - b),
        );
        assert.deepEqual(splitHoldout(rows, share, seed), { train, heldOut });
      },
    ),
  );
  const rows = Array.from({ length: 50 }, (_, i) => i);
  assert.equal(splitHoldout(rows, 7, 1).heldOut.length, 7);
  assert.notDeepEqual(splitHoldout(rows, 7, 1), splitHoldout(rows, 7, 2));
  assert.deepEqual(splitHoldout(rows, 0, 1).heldOut, []);
  for (const size of [-1, 1.5, 50, 51, Number.NaN]) assert.throws(() => splitHoldout(rows, size, 1), ConfigError, String(size));
});

test("a preview shows the whole row and what of it is learned", async () => {
  const { conversations } = await loadValue([{ ...alpacaRow, system: "S" }]);
  const { examples } = await tokenizeDataset(conversations, chat, { cutoffLen: 999 });
  const row = previewRow(examples[0]!, chat.tokenizer);
  const text = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nAdd.\n2 + 2<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n";
  assert.equal(row.pieces.map((piece) => piece.text).join(""), text);
  assert.deepEqual(
    row.pieces.filter(({ supervised }) => supervised).map((piece) => piece.text),
    ["4<|im_end|>"],
  );
  assert.deepEqual([row.where, row.supervisedTokens], ["rows.json, row 1", 2]);
});

const shared = process.env.ATTUNE_SHARED_DATA ?? fileURLToPath(new URL("../../../../shared/data", import.meta.url));

test("LLaMA-Factory's demonstration data", { skip: existsSync(shared) ? false : `no data in ${shared}` }, async () => {
  const { conversations, bad, notices } = await loadDataset({
    dataset: "identity,alpaca_en_demo,alpaca_zh_demo",
    datasetDir: shared,
  });
  const files = ["identity", "alpaca_en_demo", "alpaca_zh_demo"].map(
    async (name) => JSON.parse(await readFile(join(shared, `${name}.json`), "utf8")).length as number,
  );
  const rows = (await Promise.all(files)).reduce((total, each) => total + each, 0);
  assert.deepEqual([conversations.length, bad.length], [rows, 0]);
  assert.match(notices.join(), /identity: \d+ rows hold \{\{name\}\} or \{\{author\}\}/);
  const { report } = await tokenizeDataset(conversations.slice(0, 200), chat, { cutoffLen: 4096 });
  assert.deepEqual([report.examples + report.leftOut.length, report.withoutEnd], [200, 0]);
  for (const name of ["dpo_en_demo", "kto_en_demo"]) {
    await assert.rejects(loadDataset({ dataset: name, datasetDir: shared }), { code: "CONFIG", message: /preference data/ });
    await assert.rejects(loadDataset({ dataset: join(shared, `${name}.json`) }), { code: "DATA" });
  }
});

test("thinking switched off leaves thoughts out, and the answer begins behind an empty one", async () => {
  const tokenizer = byteChat().tokenizer;
  const { template } = chooseTemplate(tokenizer, { name: "qwen3", enableThinking: false });
  const { conversations } = await loadValue([
    {
      messages: [
        { role: "user", content: "Q" },
        { role: "assistant", content: "A", reasoning_content: "Why?" },
      ],
    },
    { question: "Q", answer: "<think>\nWhy?\n</think>\n\nA" },
    { question: "Q", answer: "A" },
  ]);
  const options = { cutoffLen: 1000, withoutThoughts: true };
  const { examples, report } = await tokenizeDataset(conversations, { tokenizer, template }, options);
  for (const example of examples) {
    const { pieces } = previewRow(example, tokenizer);
    assert.deepEqual(
      pieces.map(({ text }) => text),
      ["<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "A<|im_end|>", "\n"],
    );
  }
  assert.deepEqual(report.notices, ["In 2 of 3 rows thoughts are left out of the answers, as enable_thinking is false."]);
});
