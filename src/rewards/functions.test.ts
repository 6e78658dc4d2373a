import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { temporaryFolder } from "../io/testing/folders.js";
import { contextOf, rewardFrom, sampleOf } from "./testing/samples.js";

const samples = [
  sampleOf("a", { gold: "a" }, "rows.jsonl:1"),
  sampleOf("bb", {}, "rows.jsonl:2"),
  sampleOf("ccc", {}, "rows.jsonl:3"),
];

test("a function of the program scores answers, at once or later, and may have nothing to say", async () => {
  const functions = {
    lengthy: ({ answer }: { answer: string }) => answer.length,
    slow: async ({ columns }: { columns: Readonly<Record<string, unknown>> }) => {
      await new Promise(setImmediate);
      return columns.gold === undefined ? null : 1;
    },
  };
  assert.deepEqual(await rewardFrom({ type: "function", name: "lengthy" }, functions).score(samples, contextOf()), [1, 2, 3]);
  assert.deepEqual(await rewardFrom({ type: "function", name: "slow" }, functions).score(samples, contextOf()), [1, null, null]);
});

test("a function that nobody handed over is asked for by name", async () => {
  await assert.rejects(rewardFrom({ type: "function", name: "brief" }).open!(), {
    code: "CONFIG",
    message: /brief is a function of the program that trains, and none was given: train\(recipe, \{ rewards: \{ "brief"/,
  });
  await assert.rejects(rewardFrom({ type: "function", name: "toString" }, { other: () => 1 }).open!(), {
    code: "CONFIG",
    message: /there are other/,
  });
});

test("a function that throws, or gives no number, is told with row and name, whatever the others do", async () => {
  const cases: readonly (readonly [() => unknown, RegExp])[] = [
    [
      () => {
        throw new TypeError("no such key");
      },
      /^rows\.jsonl:2: the reward mine threw TypeError: no such key$/,
    ],
    [
      async () => {
        throw new Error("later");
      },
      /^rows\.jsonl:2: the reward mine threw Error: later$/,
    ],
    [
      () => {
        throw null;
      },
      /^rows\.jsonl:2: the reward mine threw null$/,
    ],
    [() => undefined, /^rows\.jsonl:2: the reward mine gave undefined: expected a number, or null/],
    [() => "1", /gave "1": expected a number/],
    [() => true, /gave true/],
    [() => ({ score: 1 }), /gave an object/],
  ];
  for (const [second, message] of cases) {
    const mine = ({ answer }: { answer: string }) =>
      answer === "bb" ? second() : answer === "ccc" ? Promise.reject(new Error("third")) : 1;
    await assert.rejects(
      rewardFrom({ type: "function", name: "mine" }, { mine: mine as () => number }).score(samples, contextOf()),
      { code: "REWARD", message },
    );
  }
});

test("a function that never answers is left behind when the run is stopped", async () => {
  const stop = new AbortController();
  const never = rewardFrom({ type: "function", name: "never" }, { never: () => new Promise<number>(() => {}) });
  const scoring = never.score(samples, contextOf(stop.signal));
  setTimeout(() => stop.abort(new Error("stopped")), 10);
  await assert.rejects(scoring, /^Error: stopped$/);
  await assert.rejects(never.score(samples, contextOf(stop.signal)), /^Error: stopped$/);
});

test("a module in TypeScript is read where Node reads it, and else told what to do", async (t) => {
  const file = join(temporaryFolder(t), "rewards.mts");
  writeFileSync(file, "export const brevity = ({ answer }: { answer: string }): number => -answer.length;\n");
  const reward = rewardFrom({ type: "module", module: `${file}#brevity` });
  const [major, minor] = process.versions.node.split(".").map(Number);
  if (major! > 22 || (major === 22 && minor! >= 18)) assert.deepEqual(await reward.score(samples, contextOf()), [-1, -2, -3]);
  else
    await assert.rejects(reward.open!(), {
      code: "CONFIG",
      message: /Node reads TypeScript from 22\.18 on; for an older one, compile it/,
    });
});

test("a module's function is found by path and name", async (t) => {
  const folder = temporaryFolder(t);
  const file = join(folder, "rewards.mjs");
  writeFileSync(
    file,
    "export const brevity = ({ answer }) => -answer.length;\nexport default () => 7;\nexport const limit = 3;\n",
  );
  assert.deepEqual(await rewardFrom({ type: "module", module: `${file}#brevity` }).score(samples, contextOf()), [-1, -2, -3]);
  assert.deepEqual(await rewardFrom({ type: "module", module: file }).score(samples, contextOf()), [7, 7, 7]);

  writeFileSync(join(folder, "broken.mjs"), "export const = 1;");
  writeFileSync(join(folder, "throws.mjs"), 'throw new Error("not today");');
  writeFileSync(join(folder, "empty.mjs"), "");
  const wrong: readonly (readonly [string, RegExp])[] = [
    [`${folder}/none.mjs#f`, /there is no file .*none\.mjs$/],
    [`${file}#brevty`, /exports no function "brevty"; its functions are brevity, default/],
    [`${file}#limit`, /exports no function "limit"/],
    [`${folder}/empty.mjs`, /exports no function "default"; it exports no function/],
    [`${folder}/broken.mjs#f`, /broken\.mjs cannot be loaded: /],
    [`${folder}/throws.mjs#f`, /throws\.mjs cannot be loaded: not today/],
  ];
  for (const [module, message] of wrong)
    await assert.rejects(rewardFrom({ type: "module", module }).open!(), { code: "CONFIG", message }, module);
});
