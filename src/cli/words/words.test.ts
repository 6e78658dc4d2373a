import assert from "node:assert/strict";
import { PassThrough, Readable } from "node:stream";
import test from "node:test";
import { main } from "../main.js";
import { parts } from "../parts.js";
import { en } from "./en.js";
import { takeLanguage, wordsFor } from "./index.js";
import { zh } from "./zh.js";

/** What a command line prints, under these variables of the environment. */
async function printed(argv: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<string> {
  const output = new PassThrough();
  await main(argv, parts, { stdin: Readable.from([]), stdout: output, stderr: output, env });
  return String(output.read() ?? "");
}

test("the language is --lang's wherever it stands, then the environment's, then English", async () => {
  const cases: [env: Record<string, string>, words: typeof en][] = [
    [{}, en],
    [{ LANG: "zh_CN.UTF-8" }, zh],
    [{ LANG: "zh_TW" }, zh],
    [{ LANG: "C.UTF-8" }, en],
    [{ LANG: "zh_CN.UTF-8", LC_ALL: "C" }, en],
    [{ LANG: "en_GB.UTF-8", LC_MESSAGES: "zh_CN" }, zh],
    [{ LANG: "de_DE", ATTUNE_LANG: "zh" }, zh],
    [{ LANG: "constructor" }, en],
  ];
  for (const [env, words] of cases) assert.equal(wordsFor(env), words, JSON.stringify(env));

  assert.deepEqual(takeLanguage(["train", "a.yaml", "--lang", "zh", "seed=1"]), {
    language: "zh",
    rest: ["train", "a.yaml", "seed=1"],
  });
  assert.deepEqual(takeLanguage(["--lang=en", "doctor"]), { language: "en", rest: ["doctor"] });
  assert.deepEqual(takeLanguage(["doctor", "--language"]), { language: undefined, rest: ["doctor", "--language"] });
  for (const argv of [["--lang"], ["--lang", "tlh"], ["--lang="]]) {
    assert.throws(() => takeLanguage(argv), /--lang: expected one of en, zh, got "/);
    assert.match(await printed(argv), /^attune: --lang: expected one of en, zh/);
  }
});

test("help is in the chosen language, headings and wrapping included", async () => {
  for (const argv of [
    ["--help"],
    ["train", "--help"],
    ["chat", "-h"],
    ["export", "-h"],
    ["classify", "-h"],
    ["label", "-h"],
    ["doctor", "-h"],
  ]) {
    const [english, chinese] = [await printed(argv), await printed([...argv, "--lang", "zh"])];
    assert.match(english, /Usage:[\s\S]*Options:/);
    assert.match(chinese, /用法：[\s\S]*选项：/);
    assert.doesNotMatch(chinese, /Usage:|Options:|Examples:/);
    assert.doesNotMatch(english, /\p{Script=Han}/u);
    assert.equal(await printed(argv, { LANG: "zh_CN.UTF-8" }), chinese);
  }
});

test("the Chinese dictionary translates every text, and its functions tell all that the English ones tell", () => {
  const same = new Set(["node", "hub", "python"]); // names
  walk(en, zh, []);

  function walk(one: unknown, other: unknown, path: readonly string[]): void {
    const where = path.join(".");
    if (typeof one === "string") {
      if (!same.has(one) || one !== other) assert.match(String(other), /\p{Script=Han}/u, where);
      for (const [name] of one.matchAll(/\b(?:attune \w+|--[\w-]+|\/[a-z]+\b|HF_\w+)/g))
        assert.ok(String(other).includes(name), `${where}: ${name}`);
    } else if (typeof one === "function") {
      const values = Array.from({ length: one.length }, (_, i) => `<${i}>`);
      const [said, translated] = [one(...values), (other as typeof one)(...values)] as [string, string];
      for (const value of values) assert.equal(translated.includes(value), said.includes(value), `${where}: ${translated}`);
    } else {
      for (const [key, value] of Object.entries(one as object))
        walk(value, (other as Record<string, unknown>)[key], [...path, key]);
    }
  }
});
