import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import test, { after, before } from "node:test";
import { stripVTControlCharacters } from "node:util";
import { ConfigError } from "../errors.js";
import type { ReplyEnd, ReplyOptions } from "../generate/chat.js";
import type { Message } from "../text/chat-template.js";
import { converse } from "./conversation.js";
import type { Parts } from "./parts.js";
import { defaultReply } from "./reply-settings.js";

type Chat = Awaited<ReturnType<Parts["openChat"]>>;

interface Asked {
  readonly messages: readonly Message[];
  readonly options: ReplyOptions;
}

/** A chat that says what it is given to say, or echoes; `wait` answers until it is stopped. */
function fakeChat({ says = [] as string[], finished = "stop" as ReplyEnd["finished"], areKnown = false, adapters = ["a"] } = {}) {
  const asked: Asked[] = [];
  const chat: Chat = {
    adapters,
    adapter: adapters[0] ?? null,
    facts: { weights: "bf16", compute: "f32", contextTokens: 2048, methods: new Map([["a", "lora"]]) },
    thoughts: { areKnown, areOpen: false },
    useAdapter(name) {
      if (name !== "a" && name !== null) throw new ConfigError(`there is no adapter "${name}"`);
    },
    async *reply(messages, options = {}) {
      asked.push({ messages, options });
      const { content } = messages.at(-1)!;
      if (content === "wait") {
        yield "one ";
        while (!options.signal!.aborted) await new Promise((resolve) => setTimeout(resolve, 5));
        return { finished: "aborted", tokens: 1 };
      }
      yield* says.length > 0 ? says : ["echo ", content];
      return { finished, tokens: 2 };
    },
    close() {},
  };
  return { chat, asked };
}

interface Talk {
  /** Types these keys, and waits until what comes after matches. Returns what came, without colours. */
  type(keys: string, until: RegExp): Promise<string>;
  /** Ends when the conversation does. */
  readonly ended: Promise<void>;
  readonly asked: Asked[];
  /** All that was written, as it was. */
  output(): string;
  readonly stdout: PassThrough & { columns: number };
}

async function startTalk(
  options: Parameters<typeof fakeChat>[0] = {},
  { env = {}, system }: { env?: Record<string, string>; system?: string } = {},
): Promise<Talk> {
  const { chat, asked } = fakeChat(options);
  const stdin = Object.assign(new PassThrough(), { isTTY: true });
  const stdout = Object.assign(new PassThrough(), { isTTY: true, columns: 60 });
  let all = "";
  let from = 0;
  const checks = new Set<() => void>();
  stdout.setEncoding("utf8").on("data", (text: string) => {
    all += text;
    for (const check of checks) check();
  });
  const io = { stdin, stdout, stderr: stdout, env: { LANG: "C.UTF-8", ...env } };
  const ended = converse(chat, { model: "tiny", system, reply: defaultReply }, io);
  const type = (keys: string, until: RegExp) =>
    new Promise<string>((resolve, reject) => {
      const seen = () => stripVTControlCharacters(all.slice(from));
      const timer = setTimeout(() => reject(new Error(`${until} did not come; there is ${JSON.stringify(seen())}`)), 5000);
      const check = () => {
        if (!until.test(seen())) return;
        clearTimeout(timer);
        checks.delete(check);
        const came = seen();
        from = all.length;
        resolve(came);
      };
      checks.add(check);
      if (keys !== "") stdin.write(keys);
      else check();
    });
  return { type, ended, asked, output: () => all, stdout };
}

const contents = ({ messages }: Asked) => messages.map(({ role, content }) => `${role}: ${content}`);

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "attune-talk-"));
});
after(() => rm(folder, { recursive: true }));

test("a banner tells the model, its numbers, the adapters and the system message", async () => {
  const talk = await startTalk({}, { system: "be brief" });
  const banner = await talk.type("", /leaves\.\n> $/);
  assert.equal(
    banner,
    "tiny  bf16 weights, f32 products, 2048 tokens of context\nadapter a (lora)\nsystem: be brief\n/help lists the commands; Ctrl-D leaves.\n> ",
  );
  await talk.type("\x04", /\n$/);
  await talk.ended;
  assert.ok(talk.output().includes("\x1b[?2004h") && talk.output().endsWith("\x1b[?2004l\n"), "pasting is told, until the end");
});

test("an entry has several lines by a backslash, by quotes, by Alt-Enter, and by a paste, which is not sent on its own", async () => {
  const talk = await startTalk();
  await talk.type("", /> $/);
  await talk.type("one\\\r", /… $/);
  await talk.type("two\r", /echo one\ntwo\n> $/);
  await talk.type('"""first\r', /… $/);
  await talk.type("  /reset\r", /… $/);
  await talk.type('last"""\r', /echo first\n {2}\/reset\nlast\n> $/);
  await talk.type('"""\ralone\r"""\r', /echo alone\n> $/);
  await talk.type('"""one line"""\r', /echo one line\n> $/);
  await talk.type("a\x1b\rb\r", /echo a\nb\n> $/);
  const pasted = await talk.type("see \x1b[200~def f():\r\n\treturn \x1b[31m1\r\n\x1b[201~", /return/);
  assert.doesNotMatch(pasted, /echo/);
  await talk.type("\r", /echo see def f\(\):\n\treturn 1\n> $/);
  await talk.type("\x1b[200~/reset\rno command\x1b[201~\r", /echo \/reset\nno command\n> $/);
  assert.deepEqual(contents(talk.asked.at(-1)!).at(-1), "user: /reset\nno command");
  assert.equal(contents(talk.asked[0]!).at(-1), "user: one\ntwo");
  await talk.type("\x1b[A\r", /echo \/reset\nno command\n> $/); // from the history
  await talk.type("\x04", /\n$/);
  await talk.ended;
});

test("Ctrl-C empties a line, stops an answer, and twice leaves; keys of meanwhile wait for the next line", async () => {
  const talk = await startTalk();
  await talk.type("", /> $/);
  await talk.type("half a line\x03", /> $/);
  await talk.type('"""\rmore\x03', /> $/);
  await talk.type("wait\r", /one $/);
  await talk.type("next\r\x03", /\[stopped\]\n> next\r\necho next\n> $/);
  assert.deepEqual(contents(talk.asked.at(-1)!), ["user: wait", "assistant: one ", "user: next"]);
  await talk.type("\x03", /Ctrl-C again, \/quit or Ctrl-D leaves\.\n> $/);
  await talk.type("hi\r", /echo hi\n> $/);
  await talk.type("wait\r", /one $/);
  await talk.type("\x03", /\[stopped\]\n> $/);
  await talk.type("\x03", /\n$/);
  await talk.ended;
});

test("/system and /set change the answers to come, and say what there is", async () => {
  const talk = await startTalk();
  await talk.type("", /> $/);
  assert.match(await talk.type("/system\r", /> $/), /There is no system message\./);
  await talk.type("/system You are a poet.\r", /system: You are a poet\.\n> $/);
  await talk.type("/set temperature 0.7\r", /temperature 0\.7\n> $/);
  await talk.type("/set seed=41\r", /seed 41\n> $/);
  await talk.type("hi\r", /echo hi\n> $/);
  const { messages, options } = talk.asked.at(-1)!;
  assert.deepEqual(messages[0], { role: "system", content: "You are a poet." });
  assert.deepEqual([options.temperature, options.seed, options.topP, options.maxNewTokens], [0.7, 41, 1, 512]);
  assert.match(
    await talk.type("/set\r", /> $/),
    /temperature 0\.7\ntop_p 1\ntop_k 0\nrepetition_penalty 1\nmax_new_tokens 512\nseed 42\n/,
  );
  const wrong: [line: string, expected: RegExp][] = [
    ["/set top_p 1.5", /attune: top_p: expected a number above 0 to 1, got "1\.5"\n> $/],
    ["/set top_k 1.5", /attune: top_k: expected a whole number from 0, got "1\.5"\n> $/],
    ["/set repetition_penalty 0", /attune: repetition_penalty: expected a number above 0, got "0"\n> $/],
    ["/set temperatur 1", /attune: \/set: there is no "temperatur"\. Did you mean "temperature"\? Settings: temperature, top_p/],
    ["/adapter b", /attune: there is no adapter "b"\n> $/],
    ["/foo", /no command: \/foo\n\/system TEXT [\s\S]*\/adapters [^\n]*\n> $/],
    ["/help", /\/save FILE [\s\S]*\/adapters [^\n]*\n> $/],
  ];
  for (const [line, expected] of wrong) await talk.type(`${line}\r`, expected);
  await talk.type('/system ""\r', /There is no system message\.\n> $/);
  await talk.type("/reset\r", /> $/);
  await talk.type("bye\r", /echo bye\n> $/);
  assert.deepEqual(contents(talk.asked.at(-1)!), ["user: bye"]);
  assert.equal(talk.asked.length, 2);
  await talk.type("/quit\r", /\n$/);
  await talk.ended;
});

test("/save writes the conversation as a row of training data, and never over another file", async () => {
  const { loadDataset } = await import("../data/dataset.js");
  for (const name of ["chat one.json", "chat.jsonl"]) {
    const talk = await startTalk({ says: ["<think>\nhm\n</think>\n\nHi!"], areKnown: true }, { system: "be brief" });
    await talk.type("", /> $/);
    const file = join(folder, name);
    await talk.type(`/save "${file}"\r`, /nothing has been said yet\n> $/);
    await talk.type("hello\r", /Hi!\n> $/);
    assert.match(await talk.type(`/save "${file}"\r`, /> $/), /Wrote 3 messages to/);
    const written = await readFile(file, "utf8");
    await talk.type(`/save ${file}\r`, /is there already, and nothing is overwritten: choose another name\n> $/);
    await talk.type("/save\r", /expected the name of a file/);
    await talk.type(`/save ${join(folder, "no/folder.json")}\r`, /cannot be written \(ENOENT\)\n> $/);
    assert.equal(await readFile(file, "utf8"), written);
    const { conversations, notices } = await loadDataset({ dataset: [file] });
    assert.deepEqual(notices, []);
    assert.deepEqual(
      conversations.map(({ messages }) => messages),
      [
        [
          { role: "system", content: "be brief" },
          { role: "user", content: "hello" },
          { role: "assistant", content: "Hi!", reasoning_content: "hm" },
        ],
      ],
    );
    await talk.type("\x04", /\n$/);
    await talk.ended;
  }
});

test("an answer that is cut says so", async () => {
  const cases: [finished: ReplyEnd["finished"], expected: RegExp][] = [
    ["length", /echo hi\n\[cut after 2 tokens; \/set max_new_tokens allows more\]\n> $/],
    ["context", /echo hi\n\[cut: the model takes 2048 tokens in all; \/reset begins anew\]\n> $/],
  ];
  for (const [finished, expected] of cases) {
    const talk = await startTalk({ finished });
    await talk.type("", /> $/);
    await talk.type("hi\r", expected);
    await talk.type("\x04", /\n$/);
    await talk.ended;
  }
  const { chat } = fakeChat({ finished: "length" });
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  await converse(
    chat,
    { model: "m", system: undefined, reply: defaultReply },
    { stdin: Readable.from(["hi\n"]), stdout, stderr, env: {} },
  );
  assert.equal(String(stdout.read()), "echo hi\n", "a pipe gets the answer alone");
  assert.match(String(stderr.read()), /cut after 2 tokens/);
});

test("thoughts are shown apart, and left to the template in later turns", async () => {
  const says = ["<thi", "nk>\nLet me see.\n</th", "ink>\n\nFour."];
  const coloured = await startTalk({ says, areKnown: true });
  await coloured.type("", /> $/);
  await coloured.type("2 + 2?\r", /\nLet me see\.\n\nFour\.\n> $/);
  assert.ok(coloured.output().includes("\x1b[2mLet me see.\x1b[22m\n\nFour."), "dim");
  await coloured.type("and?\r", /Four\.\n> $/);
  assert.deepEqual(coloured.asked.at(-1)!.messages[1], {
    role: "assistant",
    content: "Four.",
    reasoning_content: "Let me see.",
  });

  const plain = await startTalk({ says }, { env: { NO_COLOR: "1" } });
  await plain.type("", /> $/);
  await plain.type("2 + 2?\r", /\n\[thoughts\]\nLet me see\.\n\n\[answer\]\nFour\.\n> $/);
  await plain.type("and?\r", /Four\.\n> $/);
  assert.deepEqual(
    plain.asked.at(-1)!.messages[1],
    { role: "assistant", content: says.join("") },
    "a template that knows no thoughts was trained on answers that have them",
  );
  for (const talk of [coloured, plain]) {
    await talk.type("\x04", /\n$/);
    await talk.ended;
  }
});

test("lines wrap at the width of the terminal, wide characters and a change of it included", async () => {
  const talk = await startTalk();
  await talk.type("", /> $/);
  talk.stdout.columns = 10;
  talk.stdout.emit("resize");
  await talk.type("两杯茶五号桌\x01", /$/); // 12 columns, then to the beginning
  await talk.type("x\r", /echo x两杯茶五号桌\n> $/);
  assert.ok(talk.output().includes("\x1b[1A"), "the cursor went up to the first row");
  await talk.type("\x04", /\n$/);
  await talk.ended;
});

test("the end of the input, as when a window is closed, ends the conversation", async () => {
  const { chat } = fakeChat();
  const stdin = Object.assign(new PassThrough(), { isTTY: true });
  const stdout = Object.assign(new PassThrough(), { isTTY: true, columns: 60 });
  const io = { stdin, stdout, stderr: stdout, env: {} };
  const ended = converse(chat, { model: "m", system: undefined, reply: defaultReply }, io);
  stdin.end();
  await ended;
});
