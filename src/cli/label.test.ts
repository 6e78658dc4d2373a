import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import test, { after } from "node:test";
import { stripVTControlCharacters } from "node:util";
import { ConfigError, EngineError } from "../errors.js";
import { type LabelRow, openLabelStore, readLabels } from "../preference/label-store.js";
import { main } from "./main.js";
import { type Parts, parts } from "./parts.js";
import { displayWidth } from "./terminal.js";

const folder = mkdtempSync(join(tmpdir(), "attune-label-"));
after(() => rmSync(folder, { recursive: true }));
let files = 0;

type Chat = Awaited<ReturnType<Parts["openChat"]>>;

/** Rows of a file of its own. */
function fileOf(rows: readonly object[]): { file: string; store: string } {
  const stem = join(folder, `items-${files++}`);
  writeFileSync(`${stem}.jsonl`, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
  return { file: `${stem}.jsonl`, store: `${stem}.labels.jsonl` };
}

const answered = (count: number) =>
  Array.from({ length: count }, (_, i) => ({ prompt: `question ${i}`, answers: [`first ${i}`, `second ${i}`] }));

async function piped(argv: readonly string[], input: string, more: Partial<Parts> = {}, env = {}) {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()].map((each) => each.setEncoding("utf8")) as [
    PassThrough,
    PassThrough,
  ];
  const io = { stdin: Readable.from([input]), stdout, stderr, env: { LANG: "C.UTF-8", ...env } };
  const code = await main(["label", ...argv], { ...parts, ...more }, io);
  return { code, stdout: String(stdout.read() ?? ""), stderr: String(stderr.read() ?? "") };
}

const rowsIn = async (store: string) => (await readLabels(store)).rows as LabelRow[];

test("through a pipe, a line is an answer; what one stops at goes on, and the end of the input ends it", async () => {
  const { file, store } = fileOf(answered(3));
  const first = await piped([file, "--rater", "ann"], "a\n\nN  weil 因为\nt\nleft\nbb\n");
  assert.equal(first.code, 0, first.stderr);
  assert.match(first.stdout, /── 1 of 3 ──\nquestion 0\n\n── A ──\n(first|second) 0\n\n── B ──\n(first|second) 0\n/);
  assert.match(first.stdout, /left is none of a, b, t, x, n, u, q\nbb is none of/);
  assert.match(
    first.stdout,
    /2 labels by ann in \S+\.labels\.jsonl; 1 left: the same command goes on\nNext: attune label report/,
  );
  assert.deepEqual(
    (await rowsIn(store)).map(({ label, note }) => [label === "tie", note]),
    [
      [false, undefined],
      [true, "weil 因为"],
    ],
  );
  const second = await piped([file, "--rater", "ann"], "x\n");
  assert.match(second.stdout, /── 3 of 3 ──\nquestion 2\n/);
  assert.match(second.stdout, /Everything is labelled/);
  assert.equal((await rowsIn(store)).length, 3);
  const third = await piped([file, "--rater", "ann"], "u\nu\nb\nq\n");
  assert.match(third.stdout, /Everything is labelled[\s\S]*Taken back\.[\s\S]*question 2[\s\S]*Taken back\.[\s\S]*question 1\n/);
  assert.equal((await rowsIn(store)).length, 2);
  const other = await piped([file, "--rater", "bob"], "u\n");
  assert.match(other.stdout, /── 1 of 3 ──[\s\S]*There is nothing of yours to take back/);
  assert(!existsSync(`${store}.lock`));
});

test("A is what stands first, whichever answer that is", async () => {
  const { file, store } = fileOf(answered(40));
  const { stdout } = await piped([file, "--repeats", "0"], "a\n".repeat(40));
  const shown = [...stdout.matchAll(/── A ──\n(first|second) (\d+)/g)].map(([, which, number]) => [which, number]);
  const rows = await rowsIn(store);
  assert.deepEqual(
    rows.map(({ chosen }) => chosen![0]!.content),
    shown.map(([which, number]) => `${which} ${number}`),
  );
  assert.equal(rows.filter(({ label }) => label === "a").length, 20);
});

test("what is wrong is said before anything is asked", async () => {
  const { file } = fileOf([{ prompt: "P" }, ...answered(1)]);
  const none = await piped([file], "a\n");
  assert.deepEqual([none.code, none.stdout], [2, ""]);
  assert.match(none.stderr, /1 rows have no two answers to compare\. Who is to answer\? --model MODEL/);
  const same = await piped([file, "--model", "M", "-t", "0"], "a\n");
  assert.match(same.stderr, /one model would answer twice the same/);
  const neither = await piped([file, "--a", "base", "--b", "base"], "");
  assert.match(neither.stderr, /--a base: which model\? Give --model MODEL/);
  const adapter = await piped([file, "--model", "M", "--a", folder], "");
  assert.match(adapter.stderr, /there are no weights of an adapter in it/);
  const foreign = fileOf(answered(1));
  writeFileSync(foreign.store, "dear diary");
  assert.match((await piped([foreign.file], "a\n")).stderr, /labels\.jsonl:1: this is no row of a label store/);
  assert.equal(readFileSync(foreign.store, "utf8"), "dear diary");
  assert.match((await piped([foreign.file, "--repeats", "2"], "")).stderr, /--repeats: expected a number from 0 to 1/);
  assert.match((await piped([join(folder, "none.jsonl")], "")).stderr, /there is no such file/);
  const locked = fileOf(answered(1));
  const store = await openLabelStore(locked.store);
  assert.match((await piped([locked.file], "a\n")).stderr, /process \d+ on host .* has been writing to it/);
  await store.close();
});

/** A model whose adapters answer with their folders' names backwards; `ask` sees every question. */
function fakeChat(ask: (name: string | null, seed: number) => string | Error): { parts: Partial<Parts>; opened: object[] } {
  const opened: object[] = [];
  const openChat: Parts["openChat"] = async (options) => {
    opened.push(options);
    options.onNotice?.(
      `loaded ${options.model} and ${[...(options.adapter as ReadonlyMap<string, string>).values()].join(", ")}`,
    );
    let adapter: string | null = null;
    const chat: Chat = {
      adapters: [...(options.adapter as ReadonlyMap<string, string>).keys()],
      adapter,
      facts: { weights: "f32", compute: "f32", contextTokens: 100, methods: new Map() },
      thoughts: { areKnown: true, areOpen: false },
      useAdapter(name) {
        adapter = name;
      },
      reply(_, { seed = 0, signal } = {}) {
        const answer = ask(adapter, seed);
        return (async function* () {
          await new Promise((resolve) => setTimeout(resolve, 2));
          if (answer instanceof Error) throw answer;
          if (!signal?.aborted) yield answer;
          return { finished: seed === 3 ? ("length" as const) : ("stop" as const), tokens: 3 };
        })();
      },
      close() {},
    };
    return chat;
  };
  return { parts: { openChat }, opened };
}

function adapterNamed(name: string): string {
  const path = join(folder, name);
  if (existsSync(path)) return path;
  const made = mkdtempSync(join(folder, `${name}-`));
  writeFileSync(join(made, "adapter_config.json"), JSON.stringify({ base_model_name_or_path: "the-base", peft_type: "LORA" }));
  writeFileSync(join(made, "adapter_model.safetensors"), name);
  return made;
}

test("two adapters answer blind: no name of a model is on the screen or in a file's name, and another rater gets the same answers", async () => {
  const [a, b] = [adapterNamed("brandnew"), adapterNamed("veteran")];
  const { file, store } = fileOf([{ prompt: "P0" }, { prompt: "P1" }, { prompt: "P2" }]);
  const { parts: fake, opened } = fakeChat((name, seed) => `<think>hm ${seed}</think>${name} ${seed}`);
  const ann = await piped([file, "--a", a, "--b", b, "--rater", "ann"], "a\na\na\n", fake);
  assert.equal(ann.code, 0, ann.stderr);
  const [options] = opened as [{ model: string; adapter: ReadonlyMap<string, string> }];
  assert.deepEqual([options.model, [...options.adapter]], ["the-base", [["a", a], ["b", b]]]); // biome-ignore format: a row
  const screen = ann.stdout + ann.stderr;
  assert.doesNotMatch(screen, /brandnew|veteran|the-base/);
  assert.match(ann.stderr, /loaded … and …, …/);
  assert.match(ann.stderr, /1 answers were cut after 256 tokens/);
  assert.match(ann.stdout, /\[thoughts\]\nhm \d/);

  const rows = await rowsIn(store);
  assert.equal(rows.length, 3);
  for (const [i, { models, seed, sampling, chosen, label }] of rows.entries()) {
    assert.match(models!.a!, /^[0-9a-f]{16}$/);
    assert.notEqual(models!.a, models!.b);
    assert.deepEqual(seed, { a: 2 * i, b: 2 * i + 1 });
    assert.equal(sampling!.temperature, 0.7);
    assert.deepEqual(chosen, [
      {
        role: "assistant",
        content: `${label} ${seed![label as "a" | "b"]}`,
        reasoning_content: `hm ${seed![label as "a" | "b"]}`,
      },
    ]);
  }

  const bob = await piped([file, "--a", a, "--b", b, "--rater", "bob"], "b\nb\nb\n", fake);
  assert.equal(bob.code, 0, bob.stderr);
  assert.equal(opened.length, 1, "nothing is drawn again");
  const all = await rowsIn(store);
  assert.deepEqual(
    all.slice(3).map(({ id }) => id),
    rows.map(({ id }) => id),
  );

  const report = await piped(["report", store, "--adapter", a, "--adapter", `old=${b}`], "");
  assert.equal(report.code, 0, report.stderr);
  assert.match(report.stdout, /6 labels of 3 items/);
  assert.match(report.stdout, /Agreement, on the 3 items of more than one rater/);
  assert.match(report.stdout, /\d\. brandnew-\w+ {2}\d+ {2}\[/);
  assert.match(report.stdout, /\d\. old {2}/);
});

test("two samples of one model, or of one adapter, or an adapter against its base", async () => {
  const a = adapterNamed("brandnew");
  for (const [flags, adapters, names, hashes] of [
    [["--model", "M"], [], [null], [true, true]],
    [["--model", "M", "--a", a], ["a"], ["a"], [false, false]],
    [["--model", "M", "--a", a, "--b", a], ["a"], ["a"], [false, false]],
    [["--model", "M", "--a", a, "--b", "base"], ["a"], ["a", null], [false, true]],
    [["--model", "M", "--a", "base", "--b", a], ["b"], [null, "b"], [true, false]],
  ] as const) {
    const { file, store } = fileOf([{ prompt: "P0" }]);
    const asked = new Set<string | null>();
    const { parts: fake, opened } = fakeChat((name, seed) => {
      asked.add(name);
      return `${seed}`;
    });
    const { code, stderr } = await piped([file, ...flags], "t\n", fake);
    assert.equal(code, 0, stderr);
    assert.deepEqual([...(opened[0] as { adapter: ReadonlyMap<string, string> }).adapter.keys()], adapters);
    assert.deepEqual(asked, new Set(names));
    const [row] = await rowsIn(store);
    assert.deepEqual([row!.models!.a === null, row!.models!.b === null], hashes);
  }
});

test("a model that fails is told, and what was labelled before stays", async () => {
  const { file, store } = fileOf(Array.from({ length: 12 }, (_, i) => ({ prompt: `P${i}` })));
  const { parts: fake } = fakeChat((_, seed) => (seed === 9 ? new EngineError("the engine broke") : `${seed}`));
  const { code, stderr } = await piped([file, "--model", "M"], "a\n".repeat(12), fake);
  assert.equal(code, 1);
  assert.match(stderr, /the engine broke/);
  assert.equal((await rowsIn(store)).length, 4);
  assert(!existsSync(`${store}.lock`));
});

test("a prompt that cannot be answered is counted and told, and the others are labelled", async () => {
  const { file, store } = fileOf(Array.from({ length: 6 }, (_, i) => ({ prompt: `P${i}` })));
  const { parts: fake } = fakeChat((_, seed) =>
    seed === 2 || seed === 7 ? new ConfigError("the prompt has 9 tokens") : `${seed}`,
  );
  const { code, stdout, stderr } = await piped([file, "--model", "M"], "a\n".repeat(6), fake);
  assert.equal(code, 0, stderr);
  assert.match(stdout, /Everything is labelled[\s\S]*4 labels by/);
  assert.match(stderr, /2 prompts could not be answered, the first: the prompt has 9 tokens/);
  assert.deepEqual(
    (await rowsIn(store)).map(({ prompt }) => prompt[0]!.content),
    ["P0", "P2", "P4", "P5"],
  );
});

interface Terminal {
  /** Presses keys, and waits until what comes after matches. */
  press(keys: string, until: RegExp): Promise<string>;
  readonly ended: Promise<number>;
  readonly stdin: PassThrough;
  readonly modes: boolean[];
  all(): string;
}

function terminal(argv: readonly string[], { columns = 60, env = {}, more = {} as Partial<Parts> } = {}): Terminal {
  const modes: boolean[] = [];
  const stdin = Object.assign(new PassThrough(), { isTTY: true, setRawMode: (isRaw: boolean) => modes.push(isRaw) });
  const stdout = Object.assign(new PassThrough(), { isTTY: true, columns });
  let all = "";
  let from = 0;
  const checks = new Set<() => void>();
  stdout.setEncoding("utf8").on("data", (text: string) => {
    all += text;
    for (const check of checks) check();
  });
  const io = { stdin, stdout, stderr: stdout, env: { LANG: "C.UTF-8", ...env } };
  const ended = main(["label", ...argv], { ...parts, ...more }, io);
  const press = (keys: string, until: RegExp) =>
    new Promise<string>((resolve, reject) => {
      const seen = () => stripVTControlCharacters(all.slice(from));
      const timer = setTimeout(() => reject(new Error(`${until} did not come; there is ${JSON.stringify(seen())}`)), 10_000);
      const check = () => {
        if (!until.test(seen())) return;
        clearTimeout(timer);
        checks.delete(check);
        const text = seen();
        from = all.length;
        setTimeout(() => resolve(text), 5); // whoever wrote it waits for keys now
      };
      checks.add(check);
      stdin.write(keys);
      check();
    });
  return { press, ended, stdin, modes, all: () => all };
}

test("on a terminal a key is an answer; notes are edited as lines; Ctrl-C leaves with everything stored", async () => {
  const { file, store } = fileOf(answered(6));
  const { press, ended, modes, all } = terminal([file, "--rater", "ann"]);
  await press("", /q: quit\n$/);
  await press("a", /A is better\n[\s\S]*q: quit\n$/);
  await press("n", /note: $/);
  await press("tpyo\x7f\x7f\x7fypo b\r", /The note goes with your answer\.\n$/);
  await press("T", /tie\n[\s\S]*── 3 of 6 ──[\s\S]*quit\n$/);
  await press("n", /note: $/);
  await press("\x03", /\n?/); // leaves the note
  await press("?", /a: A is better/);
  await press("z", /z is none of a, b, t, x, n, u, q\n$/);
  await press("x", /both bad\n[\s\S]*quit\n$/);
  await press("u", /Taken back\.\n[\s\S]*── 3 of 6 ──[\s\S]*quit\n$/);
  await press("b", /B is better\n[\s\S]*quit\n$/);
  await press("\x03", /3 labels by ann/);
  assert.equal(await ended, 0);
  assert.deepEqual([modes[0], modes.at(-1)], [true, false], "the terminal is given back as it was");
  assert(all().includes("\x1b[1m── 1 of 6 ──\x1b[22m"));
  const rows = await rowsIn(store);
  assert.deepEqual(
    rows.map(({ label, note }) => [label === "tie", note]),
    [
      [false, undefined],
      [true, "typo b"],
      [false, undefined],
    ],
  );
  assert(rows.every(({ ms }) => ms >= 0 && ms < 60_000));
});

test("keys that are pressed before an item is there judge nothing; Ctrl-C leaves while the model answers", async () => {
  const { file, store } = fileOf([{ prompt: "P0" }, { prompt: "P1" }]);
  const never: Partial<Parts> = {
    async openChat() {
      const chat = await fakeChat((_, seed) => `${seed}`).parts.openChat!({ model: "M", adapter: new Map() });
      return {
        ...chat,
        async *reply(_messages, { signal } = {}) {
          while (signal?.aborted !== true) await new Promise((resolve) => setTimeout(resolve, 5));
          return { finished: "aborted", tokens: 0 };
        },
      };
    },
  };
  const { press, ended } = terminal([file, "--model", "M"], { more: never });
  await press("", /The model is answering: 2 prompts to go\. q leaves\.\n$/);
  await press("aaabbb\x03", /0 labels by \S+ in \S+; 2 left/);
  assert.equal(await ended, 0);
  assert.deepEqual(await rowsIn(store), []);

  const slow: Partial<Parts> = {
    async openChat() {
      const chat = await fakeChat((_, seed) => `${seed}`).parts.openChat!({ model: "M", adapter: new Map() });
      return {
        ...chat,
        async *reply(_messages, { seed } = {}) {
          await new Promise((resolve) => setTimeout(resolve, 50));
          yield `answer ${seed}`;
          return { finished: "stop", tokens: 1 };
        },
      };
    },
  };
  const second = terminal([file, "--model", "M"], { more: slow });
  await second.press("", /The model is answering/);
  await second.press("aaaa", /── 1 of 2 ──[\s\S]*quit\n$/);
  await second.press("q", /0 labels by/);
  await second.ended;
});

test("at 40 columns no line is wider, with Chinese characters, too, and controls of a text are shown, not obeyed", async () => {
  const { file } = fileOf([
    {
      prompt: "请用一句话介绍长城，并说明它为什么重要，最后给出一个你最喜欢的段落。",
      answers: ["长城是中国古代的军事防御工程。".repeat(6), "words ".repeat(30)],
    },
    { prompt: "danger \x1b[2J\u202e", answers: ["\x1b]0;title\x07", "plain\ttab\n    code"] },
  ]);
  for (const env of [{}, { ATTUNE_LANG: "zh" }]) {
    const { press, ended, all } = terminal([file, "--rater", "ann"], { columns: 40, env });
    await press("", /(quit|离开)\n$/);
    await press("u", /(take back|可以撤销)/);
    await press("q", /ann/);
    await ended;
    const lines = stripVTControlCharacters(all()).split("\n").slice(0, -3); // the last name files
    assert(lines.length > 12);
    for (const line of lines) assert(displayWidth(line) <= 40, `${displayWidth(line)}: ${line}`);
  }
  const { press, ended, all } = terminal([file, "--rater", "bob"], { columns: 40 });
  await press("", /quit\n$/);
  await press("t", /── 2 of 2 ──[\s\S]*quit\n$/);
  await press("q", /bob/);
  await ended;
  assert(!all().includes("\x1b[2J") && !all().includes("\x1b]0") && !all().includes("\u202e"));
  assert.match(all(), /danger \\u001b\[2J\\u202e/);
  assert.match(all(), /plain\ttab\n {4}code/);
});

test("the report of a store with one rater, of none, and in Chinese", async () => {
  const { file, store } = fileOf(answered(12));
  await piped([file, "--rater", "ann"], "a\n".repeat(13));
  const { code, stdout, stderr } = await piped(["report", store], "");
  assert.deepEqual([code, stderr], [0, ""]);
  assert.match(stdout, /^12 labels of 12 items\n {2}one answer better: 12, ties: 0, both bad: 0\nann: 12 labels, 0\.0 s each/);
  assert.match(stdout, /the left answer is the better one: 100 % \[/);
  assert.match(stdout, /says the same when asked again: \d+ % \[\d+, \d+\] of 1\n/);
  assert.match(stdout, /No item has two raters/);
  assert.doesNotMatch(stdout, /Bradley/, "nobody knows whose answers these are");
  assert.match(stdout, /rm, dpo, orpo, simpo: 12 pairs\n {2}kto, bco: 12 good and 12 bad answers\n/);
  assert.match((await piped(["report", store], "", {}, { ATTUNE_LANG: "zh" })).stdout, /12 项，12 个标注/);
  const missing = await piped(["report", join(folder, "none.jsonl")], "");
  assert.deepEqual([missing.code, /there is no such label store/.test(missing.stderr)], [2, true]);
  writeFileSync(store, '{"id":"torn');
  const torn = await piped(["report", store], "");
  assert.deepEqual([torn.code, torn.stdout], [0, "There are no labels yet.\n"]);
  assert.match(torn.stderr, /the last 11 bytes are half a row/);
});
