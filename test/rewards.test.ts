/** Runs that learn from rewards of every origin: what is maximised, what is told, and what becomes of a run whose reward fails. */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { type RecordedEvent, type RewardFunction, type RunEvent, type StepEvent, train } from "../src/index.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { hashOf, tinyRecipe, trace } from "./support/run.js";

const prompts = ["Say a", "Say b", "Say c", "Say d", "Say e", "Say f"];

function recipeIn(folder: string, rewards: readonly object[], changes: Readonly<Record<string, unknown>> = {}) {
  const dataset = join(folder, "prompts.jsonl");
  writeFileSync(dataset, prompts.map((prompt) => JSON.stringify({ prompt, answer: prompt.at(-1) })).join("\n"));
  return tinyRecipe(folder, {
    ...{ stage: "grpo", dataset: [dataset], rewards, num_generations: 4, max_new_tokens: 6, packing: false, lora_dropout: 0 },
    ...{ per_device_train_batch_size: 3, gradient_accumulation_steps: 1, num_train_epochs: 3, warmup_steps: 0 },
    ...changes,
  });
}

async function collected(
  recipe: object | string,
  options: { rewards?: Record<string, RewardFunction>; signal?: AbortSignal } = {},
) {
  const events: RecordedEvent[] = [];
  const run = train(recipe as Parameters<typeof train>[0], { ...options, onEvent: (event) => events.push(event) });
  const failure = await run.then(
    () => null,
    (error: Error & { code: string }) => error,
  );
  return { events, failure };
}

const stepsOf = (events: readonly RunEvent[]) =>
  events.filter((event): event is RecordedEvent & StepEvent => event.type === "step");
const noticesOf = (events: readonly RunEvent[]) => events.flatMap((event) => (event.type === "notice" ? [event.message] : []));

/** The share of an answer's characters that are small letters. */
const letters: RewardFunction = ({ answer }) =>
  answer === "" ? 0 : [...answer].filter((one) => /[a-z]/.test(one)).length / [...answer].length;

test("rules, a module and a function of the program judge a run together, and the recipe in its folder tells of them", async (t) => {
  const folder = temporaryFolder(t);
  const module = join(folder, "mine.mjs");
  writeFileSync(module, "export const shortness = ({ answerIds }) => 1 / answerIds.length;\n");
  const rewards = [
    { type: "contains", name: "right", weight: 2 },
    { type: "module", name: "short", module: `${module}#shortness`, weight: -1 },
    { type: "function", name: "letters" },
  ];
  const { events, failure } = await collected(recipeIn(folder, rewards), { rewards: { letters } });
  assert.equal(failure, null);
  const steps = stepsOf(events);
  assert.equal(steps.length, 6);
  for (const { metrics } of steps) {
    const of = (name: string) => Number(metrics![name]);
    const sum = 2 * of("rewards/right/mean") - of("rewards/short/mean") + of("rewards/letters/mean");
    assert.ok(Math.abs(of("reward") - sum) < 1e-9, `${of("reward")} ${sum}`);
    assert.ok(of("rewards/short/std") >= 0 && of("rewards/letters/missing") === 0);
  }
  const saved = readFileSync(join(folder, "out", "recipe.yaml"), "utf8");
  for (const name of ["right", "short", "letters"]) assert.match(saved, new RegExp(`name: ${name}`));
  const elsewhere = join(folder, "again.yaml");
  writeFileSync(elsewhere, saved.replace(/^output_dir: .*$/m, `output_dir: ${join(folder, "again")}`));
  const again = await collected(elsewhere);
  assert.equal(again.failure?.code, "CONFIG");
  assert.match(again.failure!.message, /letters is a function of the program that trains, and none was given/);
});

for (const multi_objective_aggregation of ["sum_then_normalize", "normalize_then_sum"])
  test(`a rule is learned under ${multi_objective_aggregation}`, async (t) => {
    const rewards = [
      { type: "function", name: "letters" },
      { type: "length", max: 6, weight: 0.1 },
    ];
    const more = {
      multi_objective_aggregation,
      num_train_epochs: 40,
      num_generations: 16,
      learning_rate: 1e-2,
      lr_scheduler_type: "constant",
    };
    const { events, failure } = await collected(recipeIn(temporaryFolder(t), rewards, more), { rewards: { letters } });
    assert.equal(failure, null);
    const means = stepsOf(events).map(({ metrics }) => Number(metrics!["rewards/letters/mean"]));
    const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
    assert.ok(mean(means.slice(-5)) > mean(means.slice(0, 5)) + 0.3, means.map((value) => value.toFixed(2)).join(" "));
    const constant = noticesOf(events).filter((message) => /length gave 1 to all of/.test(message));
    assert.equal(constant.length, 1);
  });

test("a function that throws ends the run by row and name, and what was saved goes on as if nothing had been", async (t) => {
  const whole = temporaryFolder(t);
  const folder = temporaryFolder(t);
  const rewards = [{ type: "function", name: "letters" }];
  const more = { save_strategy: "steps", save_steps: 2 };
  const wanted = await collected(recipeIn(whole, rewards, more), { rewards: { letters } });
  assert.equal(wanted.failure, null);

  let calls = 0;
  const failing: RewardFunction = (sample, at) => {
    if (++calls > 4 * 12) throw new Error("the judge is tired");
    return letters(sample, at);
  };
  const broken = await collected(recipeIn(folder, rewards, more), { rewards: { letters: failing } });
  assert.equal(broken.failure?.code, "REWARD");
  assert.match(broken.failure!.message, /prompts\.jsonl:\d: the reward letters threw Error: the judge is tired/);
  const resumed = await collected({ ...recipeIn(folder, rewards, more), resume_from_checkpoint: true }, { rewards: { letters } });
  assert.equal(resumed.failure, null);
  assert.deepEqual(trace(resumed.events), trace(wanted.events).slice(4));
  const weights = (of: string) => hashOf(join(of, "out", "adapter_model.safetensors"));
  assert.equal(weights(folder), weights(whole));
});

test("what is wrong with rewards is told by file, line and item, all of it at once", async (t) => {
  const file = join(temporaryFolder(t), "recipe.yaml");
  const rewards = "rewards:\n  - {type: regex, pattern: '('}\n  - {type: length, max: 3}\n  - {type: python}\n  - {typ: json}";
  writeFileSync(file, `model_name_or_path: m\nstage: grpo\ndataset: d\noutput_dir: o\n${rewards}\n`);
  const { failure } = await collected(file);
  assert.equal(failure?.code, "CONFIG");
  const lines = failure!.message.split("\n").map((line) => line.replace(/^.*recipe\.yaml/, "recipe.yaml"));
  assert.equal(lines.length, 3, failure!.message);
  assert.match(lines[0]!, /^recipe\.yaml:5: rewards: item 1 \(regex\): Invalid regular expression/);
  assert.match(lines[1]!, /^recipe\.yaml:5: rewards: item 3: python is not there: attune runs no Python/);
  assert.match(lines[2]!, /^recipe\.yaml:5: rewards: item 4: type: expected one of .*; there is none/);
});

test("a setting that another leaves no part in is told", async (t) => {
  const more = { multi_objective_aggregation: "normalize_then_sum", scale_rewards: "batch", max_steps: 1 };
  const { events, failure } = await collected(recipeIn(temporaryFolder(t), [{ type: "length", max: 3 }], more));
  assert.equal(failure, null);
  assert.equal(noticesOf(events).filter((message) => message.startsWith("scale_rewards changes nothing")).length, 1);
});

test("a stage that learns from rewards wants one", async (t) => {
  const { failure } = await collected(recipeIn(temporaryFolder(t), []));
  assert.equal(failure?.code, "CONFIG");
  assert.match(failure!.message, /rewards/);
});

test("a column that no row has ends the run before the model is loaded", async (t) => {
  const { events, failure } = await collected(recipeIn(temporaryFolder(t), [{ type: "numeric", reference: "{{ item.gold }}" }]));
  assert.match(String(failure?.message), /numeric reads the column "gold", which no row has .*there are answer/);
  assert.equal(failure!.code, "CONFIG");
  assert.ok(!events.some(({ type }) => type === "start"));
});

/** A service that says of each answer how long it is, and from request `hangsFrom` on nothing. */
async function service(t: TestContext, hangsFrom = Number.POSITIVE_INFINITY) {
  const seen: string[][] = [];
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const { messages } = JSON.parse(Buffer.concat(chunks).toString("utf8")) as { messages: string[] };
      seen.push(messages);
      if (seen.length < hangsFrom) response.end(JSON.stringify({ scores: messages.map((message) => message.length) }));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, seen };
}

test("a service judges a run: it sees prompts with answers as the model wrote them", async (t) => {
  const { url, seen } = await service(t);
  const { events, failure } = await collected(recipeIn(temporaryFolder(t), [{ type: "api", url }]));
  assert.equal(failure, null);
  assert.equal(seen.length, 6);
  assert.ok(seen.flat().every((message) => prompts.some((prompt) => message.includes(prompt))));
  const [first] = stepsOf(events);
  const lengths = seen[0]!.map((message) => message.length);
  assert.equal(lengths.length, 12);
  assert.ok(Math.abs(Number(first!.metrics!.reward) - lengths.reduce((sum, length) => sum + length, 0) / 12) < 1e-9);
});

test("a run whose service hangs can be stopped at once", async (t) => {
  const { url, seen } = await service(t, 3);
  const stop = new AbortController();
  const waiting = setInterval(() => {
    if (seen.length === 3) stop.abort();
  }, 10);
  t.after(() => clearInterval(waiting));
  const { events, failure } = await collected(recipeIn(temporaryFolder(t), [{ type: "api", url, timeout: 600 }]), {
    signal: stop.signal,
  });
  assert.equal(failure?.code, "INTERRUPTED");
  assert.equal(stepsOf(events).length, 2);
});
