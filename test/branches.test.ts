/** A prompt computed once for its answers, against the same prompt before each: in log-probabilities and in gradients. */
import assert from "node:assert/strict";
import test from "node:test";
import { gatherRows } from "../src/core/ops/rows.js";
import { Rng } from "../src/core/rng.js";
import { forward } from "../src/core/tape.js";
import type { ComputeType } from "../src/engine/kernels.js";
import { ModelError } from "../src/errors.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import { type BranchBatch, type Family as Branches, packFamilies } from "../src/models/branches.js";
import type { CausalLM } from "../src/models/causal-lm.js";
import { asCausalLM } from "../src/models/causal-lm.js";
import { loadModel } from "../src/models/load.js";
import { packSequences } from "../src/models/token-batch.js";
import type { Task } from "../src/objectives/objective.js";
import { tuners } from "../src/tuners/index.js";
import { assertClose } from "./support/assert-close.js";
import { classifierFolder } from "./support/classifiers.js";
import { type Family, families, llama } from "./support/families.js";
import { device, engine, randomValues } from "./support/gradient-check.js";
import { partsOf } from "./support/parts.js";
import { assertEstimatedPeak } from "./support/step-peak.js";

const random = new Rng(11);
const tokens = (length: number) => Int32Array.from({ length }, () => random.below(259));

/** Ragged: a prompt of one token, answers of one token, a lone answer, a family without any, a prompt longer than any window of the families. */
const ragged: readonly Branches[] = [
  { prompt: tokens(9), answers: [tokens(7), tokens(1), tokens(12)] },
  { prompt: tokens(1), answers: [tokens(4), tokens(2)] },
  { prompt: tokens(3), answers: [] },
  { prompt: tokens(23), answers: [tokens(5)] },
  { prompt: tokens(6), answers: [tokens(1), tokens(1), tokens(17), tokens(3)] },
];

/** The same with every prompt repeated, each sequence followed by `padding(its length)` tokens of no meaning. */
function repeated(all: readonly Branches[], padding: (length: number) => number = () => 0): BranchBatch {
  const shared = packFamilies(all);
  const rows: number[] = [];
  const ends: number[] = [];
  const sequences: Int32Array[] = [];
  let start = 0;
  for (const { prompt, answers } of all)
    for (const answer of answers) {
      const length = prompt.length + answer.length;
      for (const t of answer.keys()) rows.push(start + prompt.length + t - 1);
      ends.push(start + length - 1);
      sequences.push(Int32Array.of(...prompt, ...answer, ...new Int32Array(padding(length))));
      start += sequences.at(-1)!.length;
    }
  return { ...shared, input: packSequences(sequences), rows: Int32Array.from(rows), ends: Int32Array.from(ends) };
}

const layouts = {
  packed: repeated(ragged),
  padded: repeated(ragged, (length) => 30 - length),
  shared: packFamilies(ragged),
};

/** Log-probabilities, the hidden states at the ends of answers, and the gradients of random sums of both. */
async function outcome(model: CausalLM, { input, rows, targets, ends }: BranchBatch, rng: Rng | null = null) {
  const pass = forward(() => {
    const hidden = model.hidden(input);
    return { logProbs: model.lm_head.logProbs(gatherRows(hidden, rows), targets, 1.3), ends: gatherRows(hidden, ends) };
  }, rng);
  const { result } = pass;
  const values = { logProbs: await result.logProbs.read(), ends: await result.ends.read() };
  const seeds = new Rng(5);
  pass.backward(
    Object.values(result).map((output) => ({ output, seed: randomValues(seeds, output.shape, output.columns === 1 ? 1 : 0.1) })),
  );
  pass.dispose();
  const gradients = new Map<string, Float32Array>();
  for (const [name, { value }] of model.trainableParameters()) {
    gradients.set(name, await value.grad!.read());
    value.grad!.dispose();
    value.grad = null;
  }
  return new Map([...Object.entries(values), ...gradients]);
}

type Outcome = Awaited<ReturnType<typeof outcome>>;

/** ‖a − b‖ / ‖b‖ of each array. */
const distances = (a: Outcome, b: Outcome) =>
  new Map([...b].map(([name, y]) => [name, Math.hypot(...a.get(name)!.map((x, i) => x - y[i]!)) / Math.hypot(...y)] as const));

function assertNear(a: Outcome, b: Outcome, tolerance: number, what: string): void {
  assert.deepEqual([...a.keys()], [...b.keys()]);
  assert.ok(b.size > 2);
  for (const [name, distance] of distances(a, b)) assert.ok(distance <= tolerance, `${what}: ${name} differs by ${distance}`);
}

/** A tuned model away from its start, so that all that trains has an effect. */
async function moved(
  family: Family,
  tuner: (typeof tuners)[number],
  settings: Readonly<Record<string, unknown>> = {},
  config: Readonly<Record<string, unknown>> = {},
  compute: ComputeType = "f32",
): Promise<CausalLM> {
  const tuning = tuner.bind(tuner.config.parse(settings));
  const { model } = await family.load(config, compute, (loaded) => tuning.storing?.(loaded, () => {}));
  tuning.apply(model, new Rng(3));
  const rng = new Rng(4);
  for (const [, { value }] of model.trainableParameters()) {
    const values = await value.read();
    const moves = randomValues(rng, value.shape, 0.02);
    const changed = values.map((x, i) => x + moves[i]!);
    if (value.dtype === "f32") model.device.kernels.write(value.id, 0, changed);
  }
  return model;
}

const tunerNamed = (name: string) => tuners.find((tuner) => tuner.name === name)!;
const variants = [
  ...tuners.map((tuner) => ({ name: tuner.name, tuner, settings: {} })),
  ...(["MLP", "LSTM", "NONE"] as const).map((encoder_reparameterization_type) => ({
    name: `p-tuning by ${encoder_reparameterization_type}`,
    tuner: tunerNamed("p-tuning"),
    settings: {
      encoder_reparameterization_type,
      num_virtual_tokens: 3,
      encoder_hidden_size: encoder_reparameterization_type === "NONE" ? undefined : 6,
    },
  })),
  {
    name: "prefix-tuning by an MLP",
    tuner: tunerNamed("prefix-tuning"),
    settings: { prefix_projection: true, encoder_hidden_size: 6 },
  },
  { name: "parallel adapters", tuner: tunerNamed("adapter"), settings: { adapter_config: "parallel" } },
  {
    name: "lora of embed_tokens and lm_head",
    tuner: tunerNamed("lora"),
    settings: { lora_target: "lm_head,embed_tokens,q_proj" },
  },
];

const mistral: Family = {
  name: "mistral with a window",
  load: (changes = {}, ...others) => llama.load({ model_type: "mistral", sliding_window: 6, ...changes }, ...others),
};

for (const family of [...families, mistral])
  for (const { name, tuner, settings } of variants) {
    if (family !== llama && name !== tuner.name) continue;
    test(`${name} on ${family.name}: padded = packed = shared, in log-probabilities and gradients`, async () => {
      const model = await moved(family, tuner, settings);
      const packed = await outcome(model, layouts.packed);
      assertNear(await outcome(model, layouts.padded), packed, 1e-5, "padded");
      assertNear(await outcome(model, layouts.shared), packed, 1e-5, "shared");
      model.dispose();
    });
  }

for (const family of [...families, mistral])
  test(`${family.name} in bf16: shared prompts are as near to f32 as repeated ones`, async () => {
    const full = tunerNamed("full");
    const exact = await moved(family, full);
    const expected = await outcome(exact, layouts.packed);
    exact.dispose();
    const model = await moved(family, full, {}, {}, "bf16");
    const [packed, shared] = [await outcome(model, layouts.packed), await outcome(model, layouts.shared)];
    model.dispose();
    const [ofPacked, ofShared] = [distances(packed, expected), distances(shared, expected)];
    for (const [name, distance] of ofShared)
      assert.ok(distance <= 1.5 * ofPacked.get(name)! + 1e-5, `${name}: ${distance}, repeated ${ofPacked.get(name)}`);
  });

for (const compute of ["f32", "bf16"] as const)
  for (const name of ["lora", "prefix-tuning", "full"])
    test(`${name} in ${compute}: one thread and two give the same bits, with checkpointing and without, dropout and noise included`, async () => {
      const { threads } = engine.info();
      const model = await moved(llama, tunerNamed(name), {}, { attention_dropout: 0.2 }, compute);
      model.noiseAlpha = 5;
      const long = packFamilies([...ragged, { prompt: tokens(60), answers: [tokens(40), tokens(65), tokens(30)] }]);
      const outcomes: Outcome[] = [];
      for (const checkpointing of [false, true])
        for (const count of [1, 2]) {
          engine.setThreads(count);
          model.gradientCheckpointing = checkpointing;
          outcomes.push(await outcome(model, long, new Rng(8)));
        }
      engine.setThreads(threads);
      model.dispose();
      assert.deepEqual(outcomes[1], outcomes[0]);
      assert.deepEqual(outcomes[3], outcomes[2]);
      if (compute === "f32") assert.deepEqual(outcomes[2], outcomes[0]); // what is kept in bf16 is computed again in f32
      assert.ok(outcomes[0]!.get("logProbs")!.every(Number.isFinite));
    });

test("what stands beside a family changes nothing about its answers", async () => {
  const model = await moved(llama, tunerNamed("lora"));
  const together = await outcome(model, packFamilies(ragged));
  let at = 0;
  for (const family of ragged) {
    if (family.answers.length === 0) continue;
    const alone = await outcome(model, packFamilies([family]));
    const { length } = alone.get("logProbs")!;
    assertClose(together.get("logProbs")!.subarray(at, at + length), alone.get("logProbs")!, 1e-5, `answers at ${at}`);
    at += length;
  }
  assert.equal(at, together.get("logProbs")!.length);
  model.dispose();
});

test("a family lies as prompt | answer | answer, each row and end where it belongs", () => {
  const of = (...ids: number[]) => Int32Array.from(ids);
  const batch = packFamilies([
    { prompt: of(1, 2), answers: [of(3), of(4, 5, 6)] },
    { prompt: of(7), answers: [of(8, 9)] },
  ]);
  assert.deepEqual(batch, {
    input: {
      ids: of(1, 2, 3, 4, 5, 6, 7, 8, 9),
      positions: of(0, 1, 2, 2, 3, 4, 0, 1, 2),
      segments: [
        { qStart: 0, qLength: 2, kStart: 0, kLength: 2 },
        { qStart: 2, qLength: 1, kStart: 2, kLength: 1, prefix: { kStart: 0, kLength: 2 } },
        { qStart: 3, qLength: 3, kStart: 3, kLength: 3, prefix: { kStart: 0, kLength: 2 } },
        { qStart: 6, qLength: 1, kStart: 6, kLength: 1 },
        { qStart: 7, qLength: 2, kStart: 7, kLength: 2, prefix: { kStart: 6, kLength: 1 } },
      ],
    },
    rows: of(1, 1, 3, 4, 6, 7),
    targets: of(3, 4, 5, 6, 8, 9),
    answers: of(0, 1, 1, 1, 2, 2),
    ends: of(2, 5, 8),
  });
});

test("GPT-2 counts the positions of each answer, not the rows of the family", async () => {
  const { model } = await families.find(({ name }) => name === "gpt2")!.load({ n_positions: 128 });
  const most = model.shape.maxPositions;
  const fits = { prompt: tokens(most - 20), answers: [tokens(20), tokens(20), tokens(20)] };
  model.hidden(packFamilies([fits]).input).dispose();
  assert.throws(() => model.hidden(packFamilies([{ ...fits, answers: [tokens(20), tokens(21)] }]).input), ModelError);
  model.dispose();
});

test("an encoder, whose prompt would see the answer, refuses to share it", async () => {
  const model = await loadModel(device, await openModelFolder(classifierFolder("bert-base")));
  const of = (...ids: number[]) => Int32Array.from(ids);
  assert.throws(() => model.hidden(packFamilies([{ prompt: of(1, 2), answers: [of(3), of(4, 5)] }]).input), {
    code: "MODEL",
    message: /answers cannot share their prompt in an encoder/,
  });
  model.dispose();
});

/** Rows that are families, of which the sum of all log-probabilities is minimised. */
const familyTask: Task<
  { where: string; tokens: number; family: Branches },
  BranchBatch & { tokens: number; counts: { loss: number } }
> = {
  collate(rows) {
    const batch = packFamilies(rows.map(({ family }) => family));
    return { ...batch, tokens: batch.input.ids.length, counts: { loss: batch.targets.length } };
  },
  shorten: (row) => row,
  terms: (model, { input, rows, targets }) => ({
    loss: {
      of: asCausalLM(model, "the test").lm_head.logProbs(gatherRows(model.hidden(input), rows), targets),
      loss: (values) => ({ sum: values.reduce((a, b) => a + b, 0), gradient: new Float32Array(values.length).fill(1) }),
    },
  }),
};

for (const { name, tuner, settings } of variants)
  for (const gradientCheckpointing of [false, true])
    test(`${name}: the symbolic step over families has the engine's peak, checkpointing ${gradientCheckpointing}`, async () => {
      await engine.sync();
      const before = engine.stats().liveBytes;
      const tuning = tuner.bind(tuner.config.parse(settings));
      const { model, files } = await llama.load({}, "f32", (loaded) => tuning.storing?.(loaded, () => {}));
      tuning.apply(model, new Rng(3));
      model.gradientCheckpointing = gradientCheckpointing;
      const rows = ragged.map((family, i) => ({ where: `family ${i}`, tokens: 1, family }));
      const parts = partsOf(files, tuning, { gradientCheckpointing });
      await assertEstimatedPeak(model, { parts, task: familyTask as never, rows, evalRows: rows, compute: "f32" }, before);
    });
