/** Decoding against an oracle: each request by itself, the whole text through the model again for every token. */
import assert from "node:assert/strict";
import { join } from "node:path";
import test, { describe, type TestContext } from "node:test";
import { gatherRows } from "../src/core/ops/rows.js";
import { Rng } from "../src/core/rng.js";
import { scope } from "../src/core/tensor.js";
import { EngineError } from "../src/errors.js";
import { type DecodedToken, Decoder, decodeAll, type FailedRequest, type Request } from "../src/generate/decoder.js";
import { greedy, sampleRows } from "../src/generate/sampling.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import type { CausalLM } from "../src/models/causal-lm.js";
import { packSequences } from "../src/models/token-batch.js";
import { tuners } from "../src/tuners/index.js";
import { SharedBase } from "../src/tuners/shared-base.js";
import { saveTuned } from "../src/tuners/tuned-files.js";
import { type Family, families } from "./support/families.js";
import { engine } from "./support/gradient-check.js";

/** Of log-probabilities in nats: products of other numbers of rows add in another order. */
const tolerance = 5e-5;

const adapterKinds = [
  ["lora", {}],
  ["prefix-tuning", { num_virtual_tokens: 5 }],
  ["p-tuning", { num_virtual_tokens: 3, encoder_hidden_size: 16 }],
] as const;

interface Setup {
  readonly base: SharedBase;
  readonly model: CausalLM;
  close(): void;
}

/** A base with an adapter of each kind, under its method's name. */
async function setUp(
  t: TestContext,
  family: Family,
  kinds: readonly (readonly [string, object])[] = adapterKinds,
  changes = {},
): Promise<Setup> {
  const root = temporaryFolder(t);
  const { model } = await family.load(changes);
  const base = new SharedBase(model);
  for (const [method, settings] of kinds) {
    await saveAdapter(join(root, method), family, method, settings, method.length);
    await base.load(method, join(root, method));
  }
  return { base, model, close: () => base.dispose() };
}

async function saveAdapter(folder: string, family: Family, method: string, settings: object, seed: number): Promise<void> {
  const tuner = tuners.find(({ name }) => name === method)!;
  const { model, files } = await family.load();
  const tuning = tuner.bind(tuner.config.parse(settings));
  const rng = new Rng(seed);
  tuning.apply(model, rng);
  for (const { value } of model.trainableParameters().values())
    engine.write(
      value.id,
      0,
      Float32Array.from({ length: value.size }, () => 0.2 * rng.normal()),
    );
  await saveTuned(folder, model, tuning, { name: "tiny", config: files.config });
  model.dispose();
}

function ids(count: number, seed: number, limit = 256): Int32Array {
  const rng = new Rng(seed);
  return Int32Array.from({ length: count }, () => rng.below(limit));
}

const sampled = { temperature: 0.9, topP: 0.95, topK: 40, repetitionPenalty: 1.2 };

function request(changes: Partial<Request> & Pick<Request, "prompt">): Request {
  return { maxNewTokens: 12, stopIds: new Set(), sampling: greedy, seed: 0, ...changes };
}

interface Answer {
  readonly ids: readonly number[];
  readonly logProbs: readonly number[];
}

async function oracle(base: SharedBase, { prompt, adapter = null, ...request }: Request): Promise<Answer> {
  const held = base.hold(adapter);
  const text = [...prompt];
  const logProbs: number[] = [];
  const rng = new Rng(request.seed);
  for (let i = 0; i < request.maxNewTokens; i++) {
    const logits = held.with((model) =>
      scope(() => (model as CausalLM).logits(packSequences([Int32Array.from(text)]), Int32Array.of(text.length - 1))),
    );
    const draw = {
      ...{ sampling: request.sampling, uniform: request.sampling.temperature === 0 ? 0 : rng.float(), seen: new Set(text) },
      logProbTemperature: request.logProbs?.temperature ?? 1,
    };
    const [sample] = await sampleRows(logits, [draw], 0);
    logits.dispose();
    assert.ok(!(sample instanceof Error));
    text.push(sample!.id);
    logProbs.push(sample!.logProb);
    if (request.stopIds.has(sample!.id)) break;
  }
  held.release();
  return { ids: text.slice(prompt.length), logProbs };
}

/** What a scoring pass says of an answer: tokenLogProbs over the whole text at once. */
async function score(base: SharedBase, { prompt, adapter = null, logProbs }: Request, answer: Int32Array): Promise<Float32Array> {
  const rows = answer.map((_, i) => prompt.length - 1 + i);
  const scores = base.with(adapter, (model) =>
    scope(() => {
      const hidden = model.hidden(packSequences([Int32Array.of(...prompt, ...answer)]));
      return (model as CausalLM).lm_head.logProbs(gatherRows(hidden, rows), answer, logProbs?.temperature);
    }),
  );
  const values = await scores.read();
  scores.dispose();
  return values;
}

/** Steps until nothing is left, and gathers what each request got; `between` does something before each step. */
async function drain(decoder: Decoder, between: (step: number) => void = () => {}) {
  const got = new Map<Request, (DecodedToken | FailedRequest)[]>();
  for (let step = 0; !decoder.isIdle; step++) {
    between(step);
    for (const result of await decoder.step()) got.set(result.request, [...(got.get(result.request) ?? []), result]);
  }
  return got;
}

function assertAnswer(results: readonly (DecodedToken | FailedRequest)[] | undefined, expected: Answer, what: string): void {
  const tokens = results!.map((result) => {
    if ("error" in result) throw result.error;
    return result;
  });
  assert.deepEqual(
    tokens.map(({ id }) => id),
    expected.ids,
    what,
  );
  for (const [i, { logProb }] of tokens.entries())
    if (logProb !== undefined) assertNear(logProb, expected.logProbs[i]!, `${what}, token ${i}`);
}

function assertNear(actual: number, expected: number, what: string): void {
  assert.ok(Math.abs(actual - expected) <= tolerance, `${what}: ${actual}, expected ${expected}`);
}

const chosen = families.filter(({ name }) => ["llama", "gemma3", "gpt2"].includes(name));

describe("each request gets what it gets alone, and the log-probabilities of a scoring pass, whatever adapters are beside it", () => {
  for (const family of chosen)
    test(family.name, async (t) => {
      const { base, close } = await setUp(t, family);
      const adapters = [null, ...adapterKinds.map(([name]) => name)];
      const requests = adapters.flatMap((adapter, i) =>
        [greedy, sampled, { ...greedy, temperature: 1.3 }].map((sampling, k) =>
          request({
            prompt: ids(5 + 7 * k + i, 10 * i + k),
            adapter,
            sampling,
            seed: 3 * i + k,
            logProbs: { temperature: 1 + k / 2 },
          }),
        ),
      );
      const expected: Answer[] = [];
      for (const each of requests) expected.push(await oracle(base, each));
      for (const slots of [1, 3, requests.length]) {
        const answers = await decodeAll(base, requests, slots);
        for (const [i, { ids: answer, logProbs, finished, stopId }] of answers.entries()) {
          const what = `${requests[i]!.adapter}, request ${i} of ${slots} slots`;
          assert.deepEqual([...answer], expected[i]!.ids, what);
          assert.deepEqual([finished, stopId], ["length", null]);
          for (const [k, logProb] of logProbs!.entries()) assertNear(logProb, expected[i]!.logProbs[k]!, what);
          const scores = await score(base, requests[i]!, answer);
          for (const [k, logProb] of logProbs!.entries()) assertNear(logProb, scores[k]!, `${what}, scored`);
        }
      }
      close();
    });
});

test("requests that join, leave and are cancelled change nothing for the others", async (t) => {
  const { base, close } = await setUp(t, chosen[0]!);
  const staying = [null, "lora", "prefix-tuning"].map((adapter, i) =>
    request({ prompt: ids(9 + i, i), adapter, maxNewTokens: 30, sampling: sampled, seed: 40 + i, logProbs: {} }),
  );
  const expected = await Promise.all(staying.map((each) => oracle(base, each)));
  const decoder = new Decoder(base, { slots: 5 });
  for (const each of staying) decoder.add(each);
  const rng = new Rng(1);
  const passing: Request[] = [];
  const got = await drain(decoder, (step) => {
    if (step > 25) return;
    const adapter = [null, "lora", "prefix-tuning", "p-tuning"][rng.below(4)]!;
    const each = request({
      prompt: ids(1 + rng.below(40), 100 + step),
      adapter,
      maxNewTokens: 1 + rng.below(9),
      sampling: sampled,
    });
    passing.push(each);
    decoder.add(each);
    if (rng.below(2) === 0) decoder.cancel(passing[rng.below(passing.length)]!);
  });
  for (const [i, each] of staying.entries()) assertAnswer(got.get(each), expected[i]!, `request ${i}`);
  assert.ok(passing.filter((each) => got.has(each)).length > 10);
  decoder.dispose();
  close();
});

test("a prompt that several share is computed once, and each sample is that of a request of its own", async (t) => {
  const { base, model, close } = await setUp(t, chosen[0]!);
  for (const adapter of [null, "lora", "prefix-tuning", "p-tuning"]) {
    const prompt = ids(50, 8);
    const samples = Array.from({ length: 6 }, (_, seed) => request({ prompt, adapter, sampling: sampled, seed, logProbs: {} }));
    let computed = 0;
    const logits = model.logits.bind(model);
    model.logits = (batch, rows) => {
      computed += batch.ids.length;
      return logits(batch, rows);
    };
    const answers = await decodeAll(base, samples, 6);
    model.logits = logits;
    assert.equal(computed, 50 + 5 + 6 * 11, "the prompt once, its last token for each of the others, and the answers");
    assert.deepEqual(answers.map(({ reusedTokens }) => reusedTokens).sort(), [0, 49, 49, 49, 49, 49]);
    for (const [i, { ids: answer, logProbs }] of answers.entries()) {
      const expected = await oracle(base, samples[i]!);
      assert.deepEqual([...answer], expected.ids);
      for (const [k, logProb] of logProbs!.entries()) assertNear(logProb, expected.logProbs[k]!, `${adapter}, sample ${i}`);
    }
    assert.ok(new Set(answers.map((answer) => answer.ids.join())).size > 1, "samples differ");
  }
  close();
});

test("a prompt goes on from what slots still hold, under the same adapter only", async (t) => {
  const { base, close } = await setUp(t, chosen[0]!);
  const decoder = new Decoder(base, { slots: 4 });
  const ask = async (prompt: Int32Array, adapter: string | null): Promise<readonly [answer: number[], reused: number]> => {
    const each = request({ prompt, adapter, logProbs: {} });
    decoder.add(each);
    const results = (await drain(decoder)).get(each)!;
    assertAnswer(results, await oracle(base, each), String(adapter));
    const tokens = results as DecodedToken[];
    return [tokens.map(({ id }) => id), tokens[0]!.reusedTokens];
  };
  const first = ids(20, 1);
  const [answer, reused] = await ask(first, "prefix-tuning");
  assert.equal(reused, 0);
  const second = Int32Array.of(...first, ...answer, 7, 8, 9);
  assert.equal((await ask(second, "prefix-tuning"))[1], 20 + 11, "all but the answer's last token, which nobody needed");
  assert.equal((await ask(second, "lora"))[1], 0);
  assert.equal((await ask(second, null))[1], 0);
  assert.equal((await ask(second, null))[1], second.length - 1, "the same again");
  assert.equal((await ask(Int32Array.of(...first, 1, 2, 3), "lora"))[1], 20, "what begins alike goes on from there");
  assert.equal((await ask(second, "lora"))[1], second.length - 1, "and leaves the longer one where it was");
  decoder.forget();
  assert.equal((await ask(second, "lora"))[1], 0);
  decoder.dispose();
  close();
});

test("an answer ends with a stop token, where the predicate says so, with its last token, or with the model's positions", async (t) => {
  const { base, model, close } = await setUp(t, chosen[0]!, []);
  const prompt = ids(10, 3);
  const free = request({ prompt, maxNewTokens: 20, sampling: sampled, seed: 5, logProbs: {} });
  const { ids: long, logProbs } = await oracle(base, free);
  const at = 6;
  const first = long.indexOf(long[at]!);
  const [stopped, predicted, one] = await decodeAll(
    base,
    [
      { ...free, stopIds: new Set([long[at]!]) },
      { ...free, stop: (answer) => answer.length === 4 && answer[3] === long[3] },
      { ...free, maxNewTokens: 1 },
    ],
    3,
  );
  assert.deepEqual([...stopped!.ids], long.slice(0, first));
  assert.deepEqual([stopped!.finished, stopped!.stopId], ["stop", long[at]]);
  assert.equal(stopped!.logProbs!.length, first + 1);
  assertNear(stopped!.logProbs![first]!, logProbs[first]!, "of the stop token");
  assert.deepEqual([[...predicted!.ids], predicted!.finished, predicted!.stopId], [long.slice(0, 4), "stop", null]);
  assert.deepEqual([[...one!.ids], one!.finished], [long.slice(0, 1), "length"]);

  const { maxPositions } = model.shape;
  const [full] = await decodeAll(base, [request({ prompt: ids(maxPositions - 3, 1), maxNewTokens: 50 })], 1);
  assert.deepEqual([full!.ids.length, full!.finished], [4, "length"]);
  close();
});

test("the likeliest tokens come with their log-probabilities where they are asked for", async (t) => {
  const { base, close } = await setUp(t, chosen[0]!, []);
  const prompt = ids(12, 2);
  const decoder = new Decoder(base, { slots: 2 });
  const asking = request({ prompt, logProbs: { temperature: 2, top: 3 }, maxNewTokens: 4 });
  const other = request({ prompt, maxNewTokens: 4 });
  decoder.add(asking);
  decoder.add(other);
  const got = await drain(decoder);
  for (const { id, logProb, top } of got.get(asking)! as DecodedToken[]) {
    assert.equal(top!.length, 3);
    assert.deepEqual(top![0], { id, logProb }, "the likeliest is the one that greedy takes");
    assert.ok(top![0]!.logProb >= top![1]!.logProb && top![1]!.logProb >= top![2]!.logProb);
    assert.ok(top!.reduce((sum, each) => sum + Math.exp(each.logProb), 0) <= 1);
  }
  for (const token of got.get(other)! as DecodedToken[]) assert.deepEqual([token.logProb, token.top], [undefined, undefined]);
  decoder.dispose();
  close();
});

describe("a request that cannot be served fails alone", () => {
  test("too long, empty, out of range, or for an adapter that is not there: before it begins", async (t) => {
    const { base, model, close } = await setUp(t, chosen[0]!);
    const decoder = new Decoder(base, { slots: 2 });
    const good = request({ prompt: ids(6, 1) });
    decoder.add(good);
    const { maxPositions, vocabSize } = model.shape;
    const refused = (changes: Partial<Request>, message: RegExp) =>
      assert.throws(() => decoder.add({ ...good, ...changes }), { name: "ConfigError", message });
    refused({ prompt: ids(0, 1) }, /the prompt has no tokens/);
    refused(
      { prompt: ids(maxPositions, 1) },
      new RegExp(`${maxPositions} tokens, and ${maxPositions} fit with the answer: shorten it`),
    );
    refused({ prompt: ids(maxPositions - 4, 1), adapter: "prefix-tuning" }, new RegExp(`and ${maxPositions - 5} fit`));
    refused({ maxNewTokens: 0 }, /max_new_tokens: expected a number of 1 or more, got 0/);
    refused({ prompt: Int32Array.of(1, vocabSize) }, /the prompt has token 259/);
    refused({ adapter: "nobody" }, /there is no adapter "nobody"/);
    refused({ sampling: { ...greedy, temperature: Number.NaN } }, /temperature: expected a number of 0 or more, got NaN/);
    refused({ sampling: { ...greedy, topP: 2 } }, /top_p: expected a number from 0 to 1, got 2/);
    refused({ sampling: { ...greedy, topK: 1.5 } }, /top_k/);
    refused({ sampling: { ...greedy, repetitionPenalty: 0 } }, /repetition_penalty/);
    refused({ logProbs: { temperature: 0 } }, /temperature of log-probabilities/);
    refused({ logProbs: { top: 260 } }, /top log-probabilities: expected a whole number from 0 to the vocabulary's 259, got 260/);
    assert.throws(() => decoder.add(good), /decoded already/);
    assertAnswer((await drain(decoder)).get(good), await oracle(base, good), "the good one");
    decoder.dispose();
    close();
  });

  test("memory that is short for one, in the cache or in the pass", async (t) => {
    const { base, model, close } = await setUp(t, chosen[0]!, [], { max_position_embeddings: 1024 });
    const { kvWidth, width } = model.shape;
    for (const largest of [4 * 400 * kvWidth, 4 * 400 * width]) {
      const decoder = new Decoder(base, { slots: 3 });
      const small = [1, 2].map((seed) => request({ prompt: ids(8, seed), sampling: sampled, seed, logProbs: {} }));
      const expected = await Promise.all(small.map((each) => oracle(base, each)));
      const large = request({ prompt: ids(400, 3), maxNewTokens: 8 });
      for (const each of [small[0]!, large, small[1]!]) decoder.add(each);
      const { kernels } = model.device;
      const alloc = kernels.alloc;
      kernels.alloc = (bytes) => {
        if (bytes >= largest) throw new EngineError("the system has no memory left");
        return alloc.call(kernels, bytes);
      };
      try {
        const got = await drain(decoder);
        const [failure, ...more] = got.get(large)!;
        assert.equal(more.length, 0);
        assert.ok("error" in failure! && failure.error instanceof EngineError, `${largest}`);
        for (const [i, each] of small.entries()) assertAnswer(got.get(each), expected[i]!, `small ${i}`);
      } finally {
        kernels.alloc = alloc;
      }
      const again = request({ prompt: ids(400, 3), maxNewTokens: 8 });
      decoder.add(again);
      assertAnswer((await drain(decoder)).get(again), await oracle(base, again), "once there is memory");
      decoder.dispose();
    }
    close();
  });

  test("a predicate that throws", async (t) => {
    const { base, close } = await setUp(t, chosen[0]!, []);
    const decoder = new Decoder(base, { slots: 2 });
    const good = request({ prompt: ids(8, 1) });
    const bad = request({ prompt: ids(8, 2), stop: () => assert.fail("by the predicate") });
    decoder.add(bad);
    decoder.add(good);
    const got = await drain(decoder);
    assert.deepEqual(
      got.get(bad)!.map((result) => "error" in result && String(result.error)),
      ["AssertionError [ERR_ASSERTION]: by the predicate"],
    );
    assertAnswer(got.get(good), await oracle(base, good), "the other");
    decoder.dispose();
    close();
  });

  test("an adapter that has diverged", async (t) => {
    const { base, close } = await setUp(t, chosen[0]!);
    base.hold("lora").with((model) => {
      const [, parameter] = [...model.namedParameters()].find(([name]) => name.includes("lora_B"))!;
      engine.write(parameter.value.id, 0, new Float32Array(parameter.value.size).fill(Number.NaN));
    });
    const decoder = new Decoder(base, { slots: 3 });
    const [bad, good] = ["lora", null].map((adapter) => request({ prompt: ids(8, 1), adapter })) as [Request, Request];
    decoder.add(bad);
    decoder.add(good);
    const got = await drain(decoder);
    const [failure] = got.get(bad)!;
    assert.ok("error" in failure!);
    assert.match(String(failure.error), /the model's logits are NaN/);
    assertAnswer(got.get(good), await oracle(base, good), "the other");
    decoder.dispose();
    close();
  });
});

test("a request keeps the adapter that it began with, though its name is given to another", async (t) => {
  const { base, close } = await setUp(t, chosen[0]!);
  const root = temporaryFolder(t);
  const folder = join(root, "other");
  await saveAdapter(folder, chosen[0]!, "lora", {}, 77);
  const each = (seed: number) => request({ prompt: ids(9, 1), adapter: "lora", sampling: sampled, seed, logProbs: {} });
  const old = [1, 2, 3].map(each);
  const before = await Promise.all(old.map((one) => oracle(base, one)));
  await engine.sync();
  const live = engine.stats().liveBytes;

  const decoder = new Decoder(base, { slots: 2 }); // the third waits
  for (const one of old) decoder.add(one);
  const early = await decoder.step();
  base.remove("lora");
  assert.throws(() => decoder.add(each(4)), /there is no adapter "lora"/);
  await base.load("lora", folder);
  const later = each(1);
  decoder.add(later);
  const after = await oracle(base, later);
  assert.notDeepEqual(after.ids, before[0]!.ids);
  const got = await drain(decoder);
  for (const result of early) got.set(result.request, [result, ...got.get(result.request)!]);
  for (const [i, one] of old.entries()) assertAnswer(got.get(one), before[i]!, `request ${i}`);
  assertAnswer(got.get(later), after, "the one that came later");
  decoder.dispose();
  await engine.sync();
  assert.equal(engine.stats().liveBytes, live, "the old adapter is freed");
  close();
});

test("any number of loops may decode at once; leaving a loop, or its signal, cancels its request", async (t) => {
  const { base, close } = await setUp(t, chosen[0]!);
  const decoder = new Decoder(base, { slots: 2 });
  const collect = async (each: Request, signal?: AbortSignal, most = 100) => {
    const answer: number[] = [];
    for await (const { id } of decoder.decode(each, signal)) {
      answer.push(id);
      if (answer.length === most) break;
    }
    return answer;
  };
  const requests = [null, "lora", "p-tuning", null].map((adapter, seed) =>
    request({ prompt: ids(7, seed), adapter, sampling: sampled, seed, maxNewTokens: 20 }),
  );
  const expected = await Promise.all(requests.map((each) => oracle(base, each)));
  const aborted = new AbortController();
  aborted.abort();
  const [left, waited, whole, never, tooLong] = await Promise.allSettled([
    collect(requests[0]!, undefined, 3),
    collect(requests[1]!),
    collect(requests[2]!),
    collect(requests[3]!, aborted.signal),
    collect(request({ prompt: ids(0, 1) })),
  ]);
  assert.deepEqual(left, { status: "fulfilled", value: expected[0]!.ids.slice(0, 3) });
  assert.deepEqual(waited, { status: "fulfilled", value: expected[1]!.ids });
  assert.deepEqual(whole, { status: "fulfilled", value: expected[2]!.ids });
  assert.deepEqual(never, { status: "fulfilled", value: [] });
  assert.equal(tooLong!.status, "rejected");
  assert.ok(decoder.isIdle);

  const controller = new AbortController();
  setTimeout(() => controller.abort(), 30);
  const endless = await collect(request({ prompt: ids(5, 1), maxNewTokens: 1e6, stop: () => false }), controller.signal, 1e6);
  assert.ok(endless.length < 1e6 && decoder.isIdle);
  decoder.dispose();
  close();
});

test("memory is that of the tokens at hand, and all of it goes back", async (t) => {
  const { base, model, close } = await setUp(t, chosen[0]!, [], { max_position_embeddings: 200_000 });
  await decodeAll(base, [request({ prompt: ids(20, 1) })], 1); // makes the table of positions
  await engine.sync();
  const before = engine.stats().liveBytes;
  const decoder = new Decoder(base, { slots: 64 });
  const each = request({ prompt: ids(20, 1), maxNewTokens: 100_000, stop: (answer) => answer.length === 5 });
  decoder.add(each);
  await drain(decoder);
  await engine.sync();
  const { layers, kvWidth } = model.shape;
  const tokens = (engine.stats().liveBytes - before) / (layers * 2 * kvWidth * 4);
  assert.ok(tokens <= 20 + 256, `room for ${tokens} tokens`);
  decoder.dispose();
  await engine.sync();
  assert.equal(engine.stats().liveBytes, before);
  close();
});
