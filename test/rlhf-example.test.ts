import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { drawCurves } from "../examples/rlhf/draw.js";
import { gold, Shop, shopRows } from "../examples/rlhf/shop.js";
import { everyMethod } from "../src/backends/index.js";
import { parseWork } from "../src/recipe/pipeline.js";
import { root } from "./support/doc-blocks.js";

const kettle = { item: "kettle", price: 31 };
const words = (count: number) => Array<string>(count).fill("well").join(" ");

test("the rule gives the points that it says", () => {
  for (const [answer, points] of [
    ["Thank you, the kettle is 31 euros.", 4],
    ["The kettle is 31 euros.", 3],
    ["The kettle is 32 euros.", 2],
    ["The kettle is 31 euros, not 30.", 2],
    ["It costs 31 euros.", 2],
    ["31", 2],
    ["Read the list!", 1],
    ["", 0],
    [words(20), 1],
    [words(25), 0.5],
    [words(40), 0],
    ["I am unhappy, and thankless.", 1], // a courteous word stands by itself
  ] as const)
    assert.equal(gold(kettle, answer), points, answer);
});

test("rows are the same each time, no question is in two files, and one pair of ten is the wrong way round", () => {
  const rows = shopRows();
  assert.deepEqual(shopRows(), rows);
  assert.deepEqual(
    Object.values(rows).map(({ length }) => length),
    [400, 2000, 400, 64],
  );
  const questions = [
    ...rows.answers.map(({ messages }) => messages[0]!.content),
    ...rows.pairs.map(({ prompt }) => prompt),
    ...[...rows.prompts, ...rows.heldout].map(({ messages }) => messages[0]!.content),
  ];
  assert.equal(new Set(questions).size, questions.length);

  const shop = new Shop(1);
  const judged = Array.from({ length: 2000 }, () => {
    const question = shop.question();
    const { chosen, rejected } = shop.pair(question);
    return { wrong: gold(question, chosen) < gold(question, rejected), longer: chosen.length > rejected.length };
  });
  const share = (of: (pair: (typeof judged)[number]) => boolean) => judged.filter(of).length / judged.length;
  assert.ok(Math.abs(share(({ wrong }) => wrong) - 0.1) < 0.02);
  assert.ok(Math.abs(share(({ longer }) => longer) - 0.5) < 0.1, "length alone tells little");
  assert.ok(
    !JSON.stringify([rows.answers, rows.pairs, rows.prompts]).includes('"price"'),
    "training never sees what the rule sees",
  );
});

test("the recipe is in order, and its pictures are", () => {
  const file = join(root, "examples/rlhf/recipe.yaml");
  const { pipeline, notices } = parseWork({ text: readFileSync(file, "utf8"), file }, [], everyMethod);
  assert.deepEqual(
    pipeline!.stages.map(({ name }) => name),
    ["1-sft", "2-rm", "3-ppo"],
  );
  assert.ok(
    notices.every((notice) => notice.includes("no learning_rate is set")),
    notices.join("\n"),
  );
  const svg = drawCurves("x", [
    {
      name: "a",
      points: [
        [0, 1],
        [2, 3],
      ],
    },
    {
      name: "b",
      points: [
        [0, -1],
        [2, -1],
      ],
    },
  ]);
  assert.match(svg, /^<svg [\s\S]*<polyline points="56\.0,304\.0 584\.0,56\.0"[\s\S]*<\/svg>\n$/);
  assert.doesNotMatch(svg, /NaN|Infinity/);
});
