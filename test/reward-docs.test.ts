/** The pages about rewards: every kind and every setting is there, and the examples score as they say. */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import test from "node:test";
import { parse } from "yaml";
import type { TrainOptions } from "../src/index.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { rewardKeys, rewardKinds, settingsOfKind } from "../src/rewards/rewards.js";
import { contextOf, rewardFrom, sampleOf } from "../src/rewards/testing/samples.js";

const root = join(import.meta.dirname, "../..");

for (const page of ["docs/rewards.md", "docs/zh/rewards.md"]) {
  const text = readFileSync(join(root, page), "utf8");
  const sections = new Map(
    [...text.matchAll(/^### `(\w+)`\n(.*?)(?=^##|$(?![\s\S]))/gms)].map(([, type, body]) => [type!, body!]),
  );
  const section = (type: string) => sections.get(type) ?? assert.fail(`${page} says nothing of ${type}`);
  const block = (body: string, language: string) =>
    new RegExp(`\`\`\`${language}\\n(.*?)\`\`\``, "s").exec(body)?.[1] ?? assert.fail(`no ${language}`);
  const itemOf = (type: string) => (parse(block(section(type), "yaml")) as object[])[0]!;

  test(`${page} names every kind of reward and all of its settings`, () => {
    assert.deepEqual([...sections.keys()].sort(), rewardKinds.map(({ type }) => type).sort());
    for (const kind of rewardKinds)
      for (const setting of settingsOfKind(kind))
        assert.match(section(kind.type), new RegExp(`\`${setting}\\b`), `${kind.type}: ${setting}`);
    const { rewards } = parse(block(text, "yaml")) as { rewards: object[] };
    assert.deepEqual(
      rewardKeys.rewards.parse(rewards).map(({ name, weight }) => [name, weight]),
      [
        ["numeric", 2],
        ["tags", 1],
        ["length", 0.2],
      ],
    );
  });

  test(`${page}: rules and graders score as the tables say`, async () => {
    let scored = 0;
    for (const [type, body] of sections) {
      const rows = [...body.matchAll(/^\| `([^`]+)` \|(?: `([^`]+)` \|)? (\S+) \|$/gm)];
      if (rows.length === 0) continue;
      const reward = rewardFrom(itemOf(type));
      const samples = rows.map(([, answer, columns = "{}"]) => sampleOf(answer!, JSON.parse(columns) as Record<string, unknown>));
      const scores = await reward.score(samples, contextOf());
      for (const [i, [line, , , score]] of rows.entries()) {
        if (score === "none") assert.equal(scores[i], null, line);
        else assert.ok(Math.abs(scores[i]! - Number(score)) < 5e-4, `${line}: ${scores[i]}`);
        scored++;
      }
    }
    assert.equal(scored, 24);
  });

  test(`${page}: a module's function and one of the program`, async (t) => {
    const file = join(temporaryFolder(t), "rewards.mjs");
    writeFileSync(file, block(section("module"), "js"));
    const item = itemOf("module") as { module: string };
    assert.equal(item.module, "rewards.mjs#brevity");
    const brevity = rewardFrom({ ...item, module: `${file}#brevity` });
    const finished = { ...sampleOf("abc"), isFinished: true };
    assert.deepEqual(await brevity.score([finished, sampleOf("abc"), sampleOf("abc", { skip: true })], contextOf()), [
      0.25,
      0,
      null,
    ]);

    const program = block(section("function"), "ts").replace('import { train } from "attune";', "");
    let handed: TrainOptions = {};
    const run = new Function("train", `return (async () => {${program}})()`) as (
      train: (recipe: string, options: TrainOptions) => void,
    ) => Promise<void>;
    await run((_recipe, options) => {
      handed = options;
    });
    const polite = rewardFrom(itemOf("function"), handed.rewards);
    assert.deepEqual(await polite.score([sampleOf("please sit"), sampleOf("sit")], contextOf()), [1, 0]);
  });

  test(`${page}: a service is asked, and answers, as shown`, async (t) => {
    const { request, response } = JSON.parse(block(section("api"), "json")) as {
      request: object;
      response: { scores: number[] };
    };
    const bodies: string[] = [];
    const server = createServer((incoming, outgoing) => {
      incoming.setEncoding("utf8").on("data", (part: string) => bodies.push(part));
      incoming.on("end", () => outgoing.end(JSON.stringify(response)));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    t.after(() => server.close());
    const item = itemOf("api") as { url: string };
    const reward = rewardFrom({
      ...item,
      url: item.url.replace("localhost:8000", `127.0.0.1:${(server.address() as AddressInfo).port}`),
    });
    assert.deepEqual(await reward.score([sampleOf("yes"), sampleOf("no")], contextOf()), response.scores);
    assert.deepEqual(JSON.parse(bodies.join("")), request);
  });
}
