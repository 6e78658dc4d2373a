/** do_predict: answers to held-out rows, their files and scores, after training or without, and after a stop. */
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { loadJieba, meanScores, scoresOf } from "../src/text/text-scores.js";
import { type AnyRecipe, collect, makeFolder, tinyRecipe } from "./support/run.js";

const linesOf = (out: string): Record<string, string>[] =>
  readFileSync(join(out, "generated_predictions.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
const json = (path: string) => JSON.parse(readFileSync(path, "utf8")) as Record<string, number>;

const settings = {
  val_size: 6,
  packing: false,
  num_train_epochs: 2,
  do_predict: true,
  predict_with_generate: true,
  max_new_tokens: 12,
};

test("a run trains, answers the held-out rows, and writes both files; the scores are those of the texts", async () => {
  const folder = makeFolder();
  await collect(tinyRecipe(folder, { ...settings, do_sample: false }));
  const out = join(folder, "out");
  const lines = linesOf(out);
  assert.equal(lines.length, 6);
  for (const line of lines) {
    assert.deepEqual(Object.keys(line), ["prompt", "predict", "label"]);
    assert.match(line.prompt!, /Where is the \w+\?+/);
    assert.match(line.label!, /^on the (mat|hill|roof|farm)$/);
  }
  const cut = await loadJieba();
  const expected = meanScores(lines.map(({ predict, label }) => scoresOf(predict!, label!, cut)));
  const results = json(join(out, "predict_results.json"));
  for (const [name, value] of Object.entries(expected)) assert.ok(Math.abs(results[`predict_${name}`]! - value) < 1e-9, name);
  assert.equal(json(join(out, "all_results.json"))["predict_bleu-4"], results["predict_bleu-4"]);
  assert.equal(json(join(out, "train_results.json"))["predict_bleu-4"], undefined);

  const again = makeFolder();
  const alone: AnyRecipe = { ...tinyRecipe(again, { ...settings, do_sample: false }) };
  const adapter = { do_train: false, do_eval: true, adapter_name_or_path: out };
  const events = await collect({ ...alone, ...adapter } as AnyRecipe);
  assert.deepEqual(linesOf(join(again, "out")), lines, "the adapter alone answers the same");
  assert.deepEqual(
    events.filter(({ type }) => type === "step" || type === "checkpoint"),
    [],
  );
  const evalLoss = json(join(again, "out/eval_results.json")).eval_loss!;
  assert.ok(Math.abs(evalLoss - json(join(out, "eval_results.json")).eval_loss!) < 1e-5);
  assert.ok(!existsSync(join(again, "out/adapter_model.safetensors")) && !existsSync(join(again, "out/train_results.json")));
  for (const one of [folder, again]) rmSync(one, { recursive: true });
});

test("drawn answers follow from the seed", async () => {
  const answers = async (seed: number) => {
    const folder = makeFolder();
    await collect(
      tinyRecipe(folder, { ...settings, val_size: 3, max_steps: 1, num_train_epochs: 1, temperature: 1.5, top_p: 1, seed }),
    );
    const lines = linesOf(join(folder, "out"));
    rmSync(folder, { recursive: true });
    return lines;
  };
  const first = await answers(1);
  assert.deepEqual(await answers(1), first);
  assert.notDeepEqual(await answers(2), first);
});

test("a run that was stopped while it answered goes on answering, and trains no step again", async () => {
  const folder = makeFolder();
  const out = join(folder, "out");
  const greedy = { ...settings, do_sample: false };
  const stop = new AbortController();
  const events = await collect(
    tinyRecipe(folder, greedy),
    (event) => {
      if (event.type === "checkpoint") stop.abort(); // the last step's, after which it answers
    },
    stop.signal,
  );
  assert.equal(events.at(-1)!.type === "end" && (events.at(-1) as { interrupted: boolean }).interrupted, true);
  assert.ok(!existsSync(join(out, "generated_predictions.jsonl")));
  assert.equal(readdirSync(out).filter((name) => name.startsWith("checkpoint-")).length, 1);
  const resumed = await collect(tinyRecipe(folder, { ...greedy, resume_from_checkpoint: true }));
  assert.deepEqual(
    resumed.filter(({ type }) => type === "step"),
    [],
  );
  const whole = makeFolder();
  await collect(tinyRecipe(whole, greedy));
  assert.deepEqual(linesOf(out), linesOf(join(whole, "out")));
  for (const one of [folder, whole]) rmSync(one, { recursive: true });
});

test("where nothing trains and no adapter is named, the base answers, whatever the method", async () => {
  const answersBy = async (finetuning_type: string) => {
    const folder = makeFolder();
    const untrained = { ...settings, do_train: false, do_sample: false, finetuning_type, lora_dropout: undefined };
    await collect(tinyRecipe(folder, untrained));
    const lines = linesOf(join(folder, "out"));
    rmSync(folder, { recursive: true });
    return lines;
  };
  assert.deepEqual(await answersBy("full"), await answersBy("lora"));
});

test("what cannot be answered is refused before anything is trained", async () => {
  const refused = (changes: Readonly<Record<string, unknown>>, reason: RegExp) =>
    assert.rejects(collect(tinyRecipe(makeFolder(), changes)), reason);
  await refused({ do_predict: true }, /do_predict needs held-out data; set val_size or eval_dataset/);
  await refused({ do_train: false }, /there is nothing to do/);
  await refused({ do_predict: true, val_size: 4, train_on_prompt: true }, /do_predict and train_on_prompt: .*remove one/);
  const folder = makeFolder();
  writeFileSync(join(folder, "a.txt"), "one text\nanother\nand one more\n");
  const texts = { stage: "pt", dataset: [join(folder, "a.txt")] };
  await refused({ do_predict: true, val_size: 1, ...texts }, /do_predict: stage pt learns no answers/);
});
