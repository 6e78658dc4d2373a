import assert from "node:assert/strict";
import test from "node:test";
import { parseJson, parseStrictJson, toPlainJson } from "./strict-json.js";

test("reads what JSON.parse reads, with exact integers", () => {
  const text = ' {"a": [1, -2, 0.5, 1e3, true, false, null], "b": {"c": "x\\u00e9\\n\\ud83d\\ude00"}, "": {}} \n';
  assert.deepEqual(JSON.parse(JSON.stringify(toPlainJson(parseStrictJson(text)))), JSON.parse(text));
  assert.equal(parseStrictJson("9007199254740993"), 9007199254740993n);
  assert.equal(parseStrictJson("1.0"), 1);
  assert.equal(parseStrictJson("123456789012345678901"), 123456789012345680000);
});

test("refuses what is ambiguous or broken, with the position", () => {
  const bad = [
    "",
    "{",
    "[1,]",
    '{"a":1,}',
    "01",
    "+1",
    "1.",
    ".5",
    "1e",
    "-",
    "1e999",
    "nul",
    "NaN",
    "Infinity",
    '"a',
    '"a\nb"',
    '"\\x"',
    '"\\ud800"',
    '"\\"',
    "'a'",
    "{a:1}",
    "[1 2]",
    "{} {}",
    "\ufeff{}",
    '{"a":1,"a":2}',
    '{"__proto__":1,"__proto__":2}',
    '{"a":1,"\\u0061":2}',
    "[".repeat(200) + "]".repeat(200),
  ];
  for (const text of bad) assert.throws(() => parseStrictJson(text), SyntaxError, text.slice(0, 40));
  assert.throws(() => parseStrictJson('{"a": x}'), /at character 6/);
});

test("takes NaN and Infinity only where asked", () => {
  const value = toPlainJson(parseStrictJson('{"a":[NaN,Infinity,-Infinity]}', { allowNonFinite: true }));
  assert.deepEqual({ ...(value as object) }, { a: [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY] });
});

test("__proto__ is a key like any other", () => {
  const value = toPlainJson(parseStrictJson('{"__proto__":{"polluted":1}}')) as Record<string, unknown>;
  assert.deepEqual(Object.keys(value), ["__proto__"]);
  assert.equal(({} as Record<string, unknown>).polluted, undefined);
});

test("parseJson is JSON.parse but for depth", () => {
  const nested = (depth: number) => `{"a": ${"[".repeat(depth)}"]}"${"]".repeat(depth)}}`;
  assert.deepEqual(parseJson('{"[": "\\"[[", "a": [1, 1], "a": {"\\\\": "]"}}'), { "[": '"[[', a: { "\\": "]" } });
  assert.deepEqual(parseJson(`"${"[".repeat(1e5)}"`), "[".repeat(1e5));
  assert.deepEqual(parseJson(`[${"[],{},".repeat(1e4)}0]`), [...Array.from({ length: 1e4 }).flatMap(() => [[], {}]), 0]);
  assert.doesNotThrow(() => JSON.stringify(parseJson(nested(126))));
  for (const depth of [127, 1e5, 1e6])
    assert.throws(() => parseJson(nested(depth)), /^SyntaxError: nested too deeply at character 132$/);
  for (const bad of ["", "{", '"', '"\\', "[1", "]]", '{"a": "b}']) assert.throws(() => parseJson(bad), SyntaxError);
});
