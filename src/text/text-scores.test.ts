import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { loadJieba, meanScores, scoresOf, type TextScores } from "./text-scores.js";

interface Case {
  readonly answer: string;
  readonly wanted: string;
  readonly words: readonly [string[], string[]];
  readonly scores: TextScores;
}

const file = join(import.meta.dirname, "../../../test/fixtures/text-scores.json");
const { cases } = JSON.parse(readFileSync(file, "utf8")) as { readonly cases: readonly Case[] };

test("words are those of Python's jieba, and scores those of LLaMA-Factory", async () => {
  const cut = await loadJieba();
  for (const { answer, wanted, words, scores } of cases) {
    assert.deepEqual([cut(answer), cut(wanted)], words);
    const ours = scoresOf(answer, wanted, cut);
    for (const [name, value] of Object.entries(scores) as [keyof TextScores, number][])
      assert.ok(
        Math.abs(ours[name] - value) < 1e-9,
        `${name} of ${JSON.stringify([answer, wanted])}: ${ours[name]}, expected ${value}`,
      );
  }
});

test("the scores of several answers are means", () => {
  const one = { "bleu-4": 10, "rouge-1": 0, "rouge-2": 1, "rouge-l": 3 };
  assert.deepEqual(meanScores([one, { ...one, "bleu-4": 20 }]), { ...one, "bleu-4": 15 });
  assert.equal(meanScores([])["rouge-1"], 0);
});
