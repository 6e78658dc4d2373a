/** Whatever a model's files say, the end is a model or a named error, within seconds and a gigabyte. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { promisify } from "node:util";
import { scope } from "../src/core/tensor.js";
import { AttuneError } from "../src/errors.js";
import { openModel } from "../src/io/open-model.js";
import { buildGguf, repetitions, temporaryFolder } from "../src/io/testing/folders.js";
import { asCausalLM } from "../src/models/causal-lm.js";
import { loadModel } from "../src/models/load.js";
import { packSequences } from "../src/models/token-batch.js";
import { loadTokenizer } from "../src/text/load-tokenizer.js";
import { byteTokenizer } from "../src/text/tokenizer/byte-tokenizer.js";
import { classifierFolder } from "./support/classifiers.js";
import { device } from "./support/gradient-check.js";

type Config = Readonly<Record<string, unknown>>;

const fixtures = join(import.meta.dirname, "../../test/fixtures");
const { ids: _, ...told } = JSON.parse(readFileSync(join(fixtures, "configs/cases.json"), "utf8")) as Record<
  string,
  { config: Config }
>;
const bert = JSON.parse(readFileSync(join(classifierFolder("bert"), "config.json"), "utf8")) as Config;
const bases: readonly (readonly [weights: string, config: Config])[] = [
  ...Object.entries(told).map(([family, { config }]) => [join(fixtures, `configs/${family}.safetensors`), config] as const),
  [join(classifierFolder("bert"), "model.safetensors"), bert],
];

const nested = (depth: number, [open, close] = ["[", "]"]) => open!.repeat(depth) + close!.repeat(depth);
const values = [
  ...["1e7", "1000000000", "-1", "0", "0.5", "NaN", "-Infinity", "1e308", "1e-320", "9007199254740993", '"8"', '"\\u0000"'],
  ...["[]", "{}", "null", "true", "false", "[1e9]", '["llama"]', '{"length":1e9}', '{"toString":1}', '{"__proto__":{"x":1}}'],
  ...[nested(100), nested(1e5), nested(100, ['{"a":', "0}"]).replace("0}", "1}"), JSON.stringify("x".repeat(1e6))],
];
const otherKeys = [
  ...["num_labels", "id2label", "label2id", "architectures", "problem_type", "rope_scaling", "rope_parameters", "rope_theta"],
  ...["layer_types", "quantization_config", "pruned_heads", "per_layer_config", "is_encoder_decoder", "eos_token_id"],
  ...["rope_factors", "original_max_position_embeddings", "attention_dropout", "__proto__", "constructor", "novel"],
];

test("a config with any value in any place makes a model or a named error at once", async (t) => {
  const folder = temporaryFolder(t);
  for (const { name, contents } of byteTokenizer().files()) writeFileSync(join(folder, name), contents);
  const every = repetitions(9, 1);
  let [count, opened] = [0, 0];
  for (const [weights, config] of bases) {
    copyFileSync(weights, join(folder, "model.safetensors"));
    for (const key of new Set([...Object.keys(config), ...otherKeys]))
      for (const value of values) {
        if (count++ % every !== 0) continue;
        const others = Object.entries(config).flatMap(([name, own]) =>
          name === key ? [] : `${JSON.stringify(name)}:${JSON.stringify(own)}`,
        );
        writeFileSync(join(folder, "config.json"), `{${[...others, `${JSON.stringify(key)}:${value}`].join()}}`);
        const startedMs = performance.now();
        const what = `${String(config.model_type)} ${key} ${value.slice(0, 40)}`;
        try {
          const files = await openModel(folder);
          const model = await loadModel(device, files);
          const batch = packSequences([Int32Array.of(1, 2, 3)]);
          const logits = scope(() =>
            model.head === null ? asCausalLM(model, "the test").logits(batch, Int32Array.of(2)) : model.classLogits(batch),
          );
          await logits.read();
          logits.dispose();
          model.dispose();
          opened++;
          await loadTokenizer(files);
        } catch (error) {
          if (!(error instanceof AttuneError)) throw new Error(what, { cause: error });
          assert.ok(error.message.length < 2000, `${what}: a message of ${error.message.length} characters`);
        }
        assert.ok(performance.now() - startedMs < 5000, what);
      }
  }
  assert.ok(opened > count / every / 20 && opened < count / every, `${opened} of ${count / every} were opened`);
});

interface Outcome {
  readonly code: string;
  readonly message: string;
  readonly ms: number;
  readonly peakBytes: number;
}

async function open(...paths: string[]): Promise<Outcome> {
  const script = join(import.meta.dirname, "support/open-hostile.js");
  const { stdout } = await promisify(execFile)(process.execPath, ["--max-old-space-size=900", script, ...paths], {
    timeout: 60_000,
  });
  return JSON.parse(stdout) as Outcome;
}

const filled = (bytes: number, item: string) => item.repeat(Math.floor(bytes / item.length));

function writeHeader(path: string, header: string): void {
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeFileSync(path, Buffer.concat([length, Buffer.from(header), Buffer.alloc(4)]));
}

const name = (i: number) => JSON.stringify(i.toString(36));

const llama = told.llama!.config;
const config = (changes: Config) => (folder: string) =>
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...llama, ...changes }));
const classifier = { architectures: ["LlamaForSequenceClassification"] };

const hostile: Readonly<Record<string, readonly [write: (folder: string) => void, message: RegExp]>> = {
  "ten million layers": [config({ num_hidden_layers: 1e7 }), /num_hidden_layers/],
  "more layers than the file": [config({ num_hidden_layers: 4096 }), /"model\.layers\.2\..*" is missing/],
  "heads a billion wide": [config({ head_dim: 1e9 }), /head_dim/],
  "a vocabulary of a billion": [config({ vocab_size: 1e9 }), /vocab_size/],
  "a billion labels": [config({ ...classifier, num_labels: 1e9 }), /num_labels: expected a whole number from 1 to/],
  "half a million labels": [
    config({ ...classifier, id2label: Object.fromEntries(Array.from({ length: 5e5 }, (_, i) => [i, "x"])) }),
    /belongs to another model/,
  ],
  "a config of half a gigabyte": [(folder) => truncateSync(join(folder, "config.json"), 5e8), /larger than 10000000 bytes/],
  "a config of small lists": [
    (folder) => writeFileSync(join(folder, "config.json"), `{"model_type":"llama","x":[${filled(9.9e6, "[],")}0]}`),
    /vocab_size/,
  ],
  "a header of numbers": [
    (folder) =>
      writeHeader(
        join(folder, "model.safetensors"),
        `{"x":{"dtype":"F32","shape":[${filled(9.9e6, "1,")}1],"data_offsets":[0,4]}}`,
      ),
    /tensor|missing/,
  ],
  "a header of tensors": [
    (folder) =>
      writeHeader(join(folder, "model.safetensors"), `{${Array.from({ length: 7e5 }, (_, i) => `${name(i)}:[0]`).join()}}`),
    /not an object/,
  ],
  "a header of a gigabyte": [
    (folder) => {
      writeHeader(join(folder, "model.safetensors"), "");
      truncateSync(join(folder, "model.safetensors"), 1e9 + 8);
      const bytes = readFileSync(join(folder, "config.json"));
      assert.ok(bytes.length > 0);
    },
    /safetensors/,
  ],
  "an index of many shards": [
    (folder) => {
      rmSync(join(folder, "model.safetensors"));
      const map = Array.from({ length: 3e5 }, (_, i) => `${name(i)}:"a${i}.safetensors"`).join();
      writeFileSync(join(folder, "model.safetensors.index.json"), `{"weight_map":{${map}}}`);
    },
    /no such file/,
  ],
  "a nested tokenizer_config.json": [
    (folder) => writeFileSync(join(folder, "tokenizer_config.json"), `{"x":${nested(1e5)}}`),
    /tokenizer_config\.json.*nested too deeply/,
  ],
  "a nested generation_config.json": [
    (folder) => writeFileSync(join(folder, "generation_config.json"), `{"eos_token_id":${nested(1e5)}}`),
    /generation_config\.json.*nested too deeply/,
  ],
  "a generation_config.json of objects": [
    (folder) => writeFileSync(join(folder, "generation_config.json"), '{"eos_token_id":[{"a":1},[2],"x",-1,1e9]}'),
    /./,
  ],
};

for (const [what, [write, message]] of Object.entries(hostile))
  test(`${what}: a named error within seconds and a gigabyte`, async (t) => {
    const folder = temporaryFolder(t);
    for (const file of byteTokenizer().files()) writeFileSync(join(folder, file.name), file.contents);
    config({})(folder);
    copyFileSync(join(fixtures, "configs/llama.safetensors"), join(folder, "model.safetensors"));
    write(folder);
    const outcome = await open(folder);
    assert.notEqual(outcome.code, "BUG", outcome.message);
    assert.match(outcome.message, message);
    assert.ok(outcome.ms < 20_000, `${outcome.ms} ms`);
    assert.ok(outcome.peakBytes < 1e9, `${outcome.peakBytes} bytes`);
  });

test("an adapter's config and a GGUF file that are made to be large end so too", async (t) => {
  const folder = temporaryFolder(t);
  const adapter = join(folder, "adapter");
  mkdirSync(adapter);
  for (const [contents, message] of [
    [`{"x":${nested(1e5)}}`, /adapter_config\.json.*nested too deeply/],
    [`{"peft_type":${nested(50)}}`, /adapter/],
    ['{"peft_type":"LORA","r":1e9,"target_modules":{"a":1}}', /adapter/],
  ] as const) {
    writeFileSync(join(adapter, "adapter_config.json"), contents);
    writeFileSync(join(adapter, "adapter_model.safetensors"), "");
    const { code, message: said } = await open(folder, adapter);
    assert.notEqual(code, "BUG", said);
    assert.match(said, message);
  }
  const path = join(folder, "x.gguf");
  const items = { i32s: new Array<number>(2 ** 21).fill(7) };
  for (const [metadata, message] of [
    [
      { "general.architecture": { string: "llama" }, a: items, b: items, c: items },
      /metadata up to "c" have 6291456 items, more than/,
    ],
    [
      Object.fromEntries(Array.from({ length: 5 }, (_, i) => [`k${i}`, { string: "x".repeat(40e6) }])),
      /more than 134217728 bytes/,
    ],
    [{ "general.architecture": { string: "x".repeat(1e6) } }, /is not supported/],
  ] as const) {
    writeFileSync(path, buildGguf(metadata, []));
    const outcome = await open(path);
    assert.match(outcome.message, message);
    assert.ok(outcome.message.length < 2000 && outcome.peakBytes < 1e9, `${outcome.message.length}, ${outcome.peakBytes} bytes`);
  }
});
