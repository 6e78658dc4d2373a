import assert from "node:assert/strict";
import test from "node:test";
import { ThoughtSplitter } from "./thoughts.js";

function split(pieces: readonly string[], isOpen = false): { thoughts: string; words: string } {
  const splitter = new ThoughtSplitter(isOpen);
  const parts = [...pieces.flatMap((piece) => splitter.push(piece)), ...splitter.end()];
  const joined = (kind: string) =>
    parts
      .filter((part) => part.kind === kind)
      .map(({ text }) => text)
      .join("");
  return { thoughts: joined("thoughts"), words: joined("words") };
}

test("thoughts come apart from the answer, wherever the pieces are cut", () => {
  const cases: [text: string, isOpen: boolean, thoughts: string, words: string][] = [
    ["<think>\nWhy < 3?\n\nSo.\n</think>\n\nFour.\n", false, "Why < 3?\n\nSo.", "Four.\n"],
    ["\n<think>a</think>b", false, "a", "b"],
    ["Why?\n</think>\n\nFour.", true, "Why?", "Four."],
    ["<think>\n\n</think>\n\nFour.", false, "", "Four."],
    ["  Four <think>is</think> a word.", false, "", "  Four <think>is</think> a word."],
    ["<thin", false, "", "<thin"],
    ["<thinking>", false, "", "<thinking>"],
    ["<think>cut off </thi", false, "cut off </thi", ""],
    ["", false, "", ""],
    ["<think>a</think>b</think>c", false, "a", "b</think>c"],
  ];
  for (const [text, isOpen, thoughts, words] of cases)
    for (let size = 1; size <= Math.max(1, text.length); size++) {
      const pieces = Array.from({ length: Math.ceil(text.length / size) }, (_, i) => text.slice(i * size, (i + 1) * size));
      assert.deepEqual(split(pieces, isOpen), { thoughts, words }, `${JSON.stringify(text)} in pieces of ${size}`);
    }
});

test("what is known is given out at once", () => {
  const splitter = new ThoughtSplitter(false);
  assert.deepEqual(splitter.push("<think>One "), [{ kind: "thoughts", text: "One" }]);
  assert.deepEqual(splitter.push("two"), [{ kind: "thoughts", text: " two" }]);
  assert.deepEqual(splitter.push("</think>"), []);
  assert.deepEqual(splitter.push("\n\nThree"), [{ kind: "words", text: "Three" }]);
  assert.deepEqual(new ThoughtSplitter(false).push("Hello"), [{ kind: "words", text: "Hello" }]);
});
