/** What decoding takes of memory is known before: the cache of keys and values as it grows, the pass over the prompts, logits. */
import assert from "node:assert/strict";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { SymbolicDevice } from "../src/core/symbolic.js";
import { decodeOnShapes } from "../src/generate/decode-on-shapes.js";
import { decodeAll } from "../src/generate/decoder.js";
import { greedy } from "../src/generate/sampling.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import { loadBase, sketchBase } from "../src/train/assemble.js";
import { tuners } from "../src/tuners/index.js";
import { device, engine } from "./support/gradient-check.js";
import { partsOf } from "./support/parts.js";
import { tinyLlama } from "./support/tiny-llama.js";

const ids = (length: number, seed: number) => Int32Array.from({ length }, (_, i) => (seed + 3 * i) % 250);

const cases = {
  "one prompt": { prompts: [ids(20, 1)], count: 1, maxNewTokens: 30, slots: 4 },
  "prompts that differ": { prompts: [ids(40, 1), ids(9, 2), ids(25, 3)], count: 1, maxNewTokens: 30, slots: 8 },
  "groups of answers": { prompts: [ids(40, 1), ids(33, 2)], count: 3, maxNewTokens: 40, slots: 8 },
  "more answers than slots": { prompts: [ids(40, 1), ids(40, 2), ids(40, 3), ids(40, 4)], count: 2, maxNewTokens: 20, slots: 4 },
  "prompts that begin alike": { prompts: [ids(40, 1), ids(60, 1), ids(50, 7)], count: 1, maxNewTokens: 20, slots: 4 },
  "answers for which the cache grows twice": { prompts: [ids(5, 1), ids(60, 2)], count: 1, maxNewTokens: 700, slots: 4 },
};

for (const method of ["lora", "prefix-tuning", "p-tuning"])
  for (const [what, decoding] of Object.entries(cases))
    test(`${method}, ${what}: decoded on shapes, they have the engine's peak`, async () => {
      const tuner = tuners.find(({ name }) => name === method)!;
      const files = await openModelFolder(join(tinyLlama, "tied"));
      const longer = { ...files, config: { ...files.config, max_position_embeddings: 1024 } };
      const tuning = tuner.bind(tuner.config.parse({}));
      const parts = partsOf(longer, tuning);
      const before = engine.stats().liveBytes;
      const base = await loadBase(device, parts);
      base.add("tuned", tuning, { rng: new Rng(0) });
      await engine.sync();
      engine.resetPeak();
      const { prompts, count, maxNewTokens, slots } = decoding;
      const requests = prompts.flatMap((prompt) =>
        Array.from({ length: count }, () => {
          return { prompt, adapter: "tuned", maxNewTokens, stopIds: new Set<number>(), sampling: greedy, seed: 0 };
        }),
      );
      const answers = await decodeAll(base, requests, slots);
      assert.ok(answers.every(({ ids }) => ids.length === maxNewTokens));
      await engine.sync();
      const measured = engine.stats().peakLiveBytes - before;
      base.dispose();

      const symbolic = new SymbolicDevice("f32");
      const sketch = sketchBase(symbolic, parts);
      sketch.add("tuned", tuning, { rng: new Rng(0) });
      symbolic.reset();
      await decodeOnShapes(sketch, "tuned", decoding);
      const { peakBytes } = symbolic.cost;
      const tables = symbolic.cost.liveBytes; // of rotary positions stay
      await decodeOnShapes(sketch, "tuned", decoding);
      assert.equal(symbolic.cost.liveBytes, tables, "something stays in memory");
      assert.equal(peakBytes, measured);
    });
