/** What a config says, against transformers: test/fixtures/make_configs.py made the cases and the numbers. */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { scope } from "../src/core/tensor.js";
import { ModelError } from "../src/errors.js";
import { exportModel } from "../src/export/export.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import type { ModelFiles } from "../src/io/model-files.js";
import { openSafetensors, readEntry, type TensorSource, toTensorEntry, writeSafetensors } from "../src/io/safetensors.js";
import { asCausalLM } from "../src/models/causal-lm.js";
import { loadModel, settleTying } from "../src/models/load.js";
import { writeRandomModel } from "../src/models/random-model.js";
import { packSequences } from "../src/models/token-batch.js";
import { assertClose } from "./support/assert-close.js";
import { device } from "./support/gradient-check.js";
import { collect, tinyRecipe } from "./support/run.js";

interface Case {
  readonly change: Readonly<Record<string, unknown>>;
  readonly head: "own" | "embedding" | "none" | "alone";
  readonly logits: readonly number[] | null;
  readonly refused: boolean;
}

type Families = Readonly<Record<string, { config: Record<string, unknown>; cases: readonly Case[] }>>;

const fixtures = join(import.meta.dirname, "../../test/fixtures/configs");
const { ids, ...families } = JSON.parse(readFileSync(join(fixtures, "cases.json"), "utf8")) as Families & { ids: number[] };

/** A model folder as a case describes it. */
async function writeCase(folder: string, family: string, config: object, { change, head }: Pick<Case, "change" | "head">) {
  const changed = Object.entries({ ...config, ...change }).filter(([, value]) => value !== "(absent)");
  writeFileSync(join(folder, "config.json"), JSON.stringify(Object.fromEntries(changed)));
  const { tensors } = await openSafetensors(join(fixtures, `${family}.safetensors`));
  const embedding = tensors.has("transformer.wte.weight") ? "transformer.wte.weight" : "model.embed_tokens.weight";
  const sources: TensorSource[] = [];
  for (const [name, stored] of tensors) {
    if ((head === "none" && name === "lm_head.weight") || (head === "alone" && name === embedding)) continue;
    const from = head === "embedding" && name === "lm_head.weight" ? tensors.get(embedding)! : stored;
    sources.push({ name, dtype: "bf16", shape: stored.shape, data: () => readEntry(toTensorEntry(from)) });
  }
  await writeSafetensors(join(folder, "model.safetensors"), sources);
}

async function inFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), "attune-configs-"));
  try {
    return await work(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

for (const [family, { config, cases }] of Object.entries(families))
  test(`${family}: ${cases.length} configs are read as transformers reads them, or refused`, async () => {
    for (const each of cases)
      await inFolder(async (folder) => {
        const what = `${each.head} ${JSON.stringify(each.change)}`;
        await writeCase(folder, family, config, each);
        const opened = openModelFolder(folder).then((files) => loadModel(device, files));
        if (each.refused || each.logits === null) {
          await assert.rejects(opened, ModelError, what);
          return;
        }
        const model = asCausalLM(await opened, "the test");
        const logits = scope(() => model.logits(packSequences([Int32Array.from(ids)]), Int32Array.of(ids.length - 1)));
        assertClose(await logits.read(), Float32Array.from(each.logits), 1e-4, what);
        logits.dispose();
        model.dispose();
      });
  });

test("what a config says for nothing, and a head that it ties wrongly, is told", async () => {
  const told = async (family: string, change: Record<string, unknown>, head: Case["head"] = "none") =>
    await inFolder(async (folder) => {
      const { config } = families[family]!;
      await writeCase(folder, family, config, { change: { tie_word_embeddings: true, ...change }, head });
      const model = await loadModel(device, await openModelFolder(folder));
      const notices = model.notices.map((notice) => notice.replaceAll(folder, "FOLDER"));
      model.dispose();
      return notices;
    });
  const effect = "FOLDER: config.json: has no effect on a model of this kind, here as in transformers:";
  assert.deepEqual(await told("llama", {}), []);
  assert.deepEqual(
    await told("llama", { temperature: 0.5, attention_bias: false, layer_types: null, _x: 1, torch_dtype: "f" }),
    [],
  );
  assert.deepEqual(await told("llama", { sliding_window: 6, __proto: 1 }), [`${effect} "sliding_window"`]);
  assert.deepEqual(await told("mistral", { attention_bias: true, novel: {} }), [`${effect} "attention_bias", "novel"`]);
  assert.deepEqual(
    await told("llama", {
      rope_theta: 9,
      rope_scaling: { type: "default", rope_theta: 8, factor: 2 },
      rope_parameters: { a: 1 },
    }),
    [`${effect} rope_parameters, beside rope_scaling, rope_theta, beside that of the scaling, "factor" of the rotary positions`],
  );
  assert.deepEqual(await told("llama", {}, "embedding"), []);
  for (const family of ["llama", "gpt2", "gemma3_text", "qwen2", "phi3"]) {
    const [notice, ...others] = await told(family, {}, "own");
    assert.match(
      notice!,
      /the config ties .* but lm_head\.weight holds other numbers than .* the two are not tied, as in transformers 5$/,
    );
    assert.deepEqual(others, []);
  }
});

test("a head that is not the embedding is settled once, for whoever opens the files", async () => {
  for (const [head, tied, holdsHead] of [
    ["own", false, true],
    ["embedding", true, false],
    ["none", true, false],
  ] as const)
    await inFolder(async (folder) => {
      await writeCase(folder, "llama", families.llama!.config, { change: { tie_word_embeddings: true }, head });
      const files = await settleTying(await openModelFolder(folder));
      assert.equal(files.config.tie_word_embeddings, tied);
      assert.equal(files.tensors.has("lm_head.weight"), holdsHead);
      assert.deepEqual(await settleTying(files), files);
      assert.equal(files.fingerprint, (await openModelFolder(folder)).fingerprint);
    });
});

test("training, the estimate, a merge and what is saved take a head that differs for what it is", async () => {
  await inFolder(async (folder) => {
    const base = join(folder, "base");
    const shape = {
      hidden_size: 64,
      intermediate_size: 64,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      num_key_value_heads: 1,
    };
    const config = {
      model_type: "llama",
      architectures: ["LlamaForCausalLM"],
      vocab_size: 259,
      max_position_embeddings: 128,
      ...shape,
    };
    await writeRandomModel(base, { ...config, tie_word_embeddings: false }, 1); // a head of its own, and then
    writeFileSync(join(base, "config.json"), JSON.stringify({ ...config, tie_word_embeddings: true }));
    const run = async (changes: Record<string, unknown>) => {
      const out = join(folder, "out");
      const recipe = {
        ...tinyRecipe(folder, { model_name_or_path: base, lora_dropout: undefined, ...changes }),
        output_dir: out,
      };
      const events = await collect({ ...recipe, max_steps: 2, overwrite_output_dir: true });
      const notices = events.flatMap((event) =>
        event.type === "notice" && /lm_head/.test(event.message) ? [event.message] : [],
      );
      assert.match(notices.join("|"), /^[^|]*holds other numbers than model\.embed_tokens\.weight[^|]*$/);
      return out;
    };
    const saved = await openModelFolder(await run({ finetuning_type: "full" }));
    assert.equal(saved.config.tie_word_embeddings, false);
    assert.ok(saved.tensors.has("lm_head.weight") && saved.tensors.has("model.embed_tokens.weight"));
    const head = async ({ readTensor }: ModelFiles) => Buffer.from(await readTensor("lm_head.weight"));
    assert.notDeepEqual(await head(saved), Buffer.from(await saved.readTensor("model.embed_tokens.weight")));

    const adapter = await run({ finetuning_type: "lora" });
    const merged = join(folder, "merged");
    await exportModel({ model: base, adapter, to: "hf", type: "f32", out: merged });
    const exported = await openModelFolder(merged);
    assert.equal(exported.config.tie_word_embeddings, false);
    assert.deepEqual(await head(exported), await head(await openModelFolder(base)));
  });
});
