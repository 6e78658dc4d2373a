import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { ModelError } from "../errors.js";
import { readGgufHeader } from "./gguf/header.js";
import { openModelFolder } from "./hf-folder.js";
import { openModel } from "./open-model.js";
import { type TensorSource, writeSafetensors, writeShardedSafetensors } from "./safetensors.js";
import { buildGguf, temporaryFolder } from "./testing/folders.js";

const tensors: TensorSource[] = [
  { name: "a", dtype: "f32", shape: [2], data: () => new Uint8Array(new Float32Array([1, 2]).buffer) },
  { name: "b", dtype: "bf16", shape: [2], data: () => new Uint8Array([1, 2, 3, 4]) },
];

async function modelFolder(t: TestContext, config: unknown = { model_type: "llama" }): Promise<string> {
  const folder = temporaryFolder(t);
  writeFileSync(join(folder, "config.json"), typeof config === "string" ? config : JSON.stringify(config));
  await writeSafetensors(join(folder, "model.safetensors"), tensors);
  return folder;
}

test("single files and shards give the same model", async (t) => {
  const single = await openModelFolder(
    await modelFolder(t, { model_type: "llama", n: 1, _name_or_path: "x", transformers_version: "4" }),
  );
  const folder = temporaryFolder(t);
  writeFileSync(join(folder, "config.json"), '{"n":1,"model_type":"llama"}');
  await writeShardedSafetensors(folder, tensors, { maxShardBytes: 8 });
  const sharded = await openModelFolder(folder);
  assert.equal(sharded.fingerprint, single.fingerprint, "config order, private keys and shards do not matter");
  for (const name of ["a", "b"]) assert.deepEqual(await sharded.readTensor(name), await single.readTensor(name));
  assert.equal(sharded.tensors.get("b")?.dtype, "bf16");
  await assert.rejects(sharded.readTensor("c"), /has no tensor c/);

  const other = await openModelFolder(await modelFolder(t, { model_type: "llama", n: 2 }));
  assert.notEqual(other.fingerprint, single.fingerprint);
});

test("code that comes with a model is ignored", async (t) => {
  const canary = join(temporaryFolder(t), "canary");
  const folder = await modelFolder(t, {
    model_type: "llama",
    auto_map: { AutoModel: "evil.Model" },
    custom_pipelines: { x: { impl: "evil.P" } },
  });
  writeFileSync(join(folder, "evil.py"), `open(${JSON.stringify(canary)}, "w")`);
  await openModel(folder);
  assert(!existsSync(canary));
});

test("says plainly what is missing or wrong", async (t) => {
  const folder = await modelFolder(t);
  const refused = async (reason: RegExp, path = folder) =>
    await assert.rejects(openModel(path), (error) => {
      assert(error instanceof ModelError, String(error));
      assert.match(error.message, reason);
      return true;
    });
  writeFileSync(join(folder, "config.json"), "{");
  await refused(/config\.json: not valid JSON/);
  writeFileSync(join(folder, "config.json"), Buffer.from([0x7b, 0xff]));
  await refused(/config\.json: not UTF-8/);
  writeFileSync(join(folder, "config.json"), "[]");
  await refused(/expected a JSON object/);
  writeFileSync(join(folder, "config.json"), '{"quantization_config":{"quant_method":"gptq"}}');
  await refused(/quantized by the method "gptq"/);
  writeFileSync(join(folder, "config.json"), "{}");
  rmSync(join(folder, "model.safetensors"));
  await refused(/no weights: expected model\.safetensors or/);
  writeFileSync(join(folder, "other.safetensors"), "");
  await refused(/It has other\.safetensors/);
  writeFileSync(join(folder, "pytorch_model.bin"), "");
  await refused(/pytorch_model\.bin: a PyTorch pickle.*Convert it once/);
  await refused(/pytorch_model\.bin: a PyTorch pickle/, join(folder, "pytorch_model.bin"));
  await refused(/Name its folder/, join(folder, "other.safetensors"));
  await refused(/no such file or folder/, join(folder, "gone"));
});

test("a pickle under a safetensors name is refused", async (t) => {
  const folder = await modelFolder(t);
  writeFileSync(
    join(folder, "model.safetensors"),
    Buffer.from("800495250000000000008c05706f736978948c0673797374656d94939494", "hex"),
  );
  await assert.rejects(openModel(folder), /not a valid safetensors file.*pickle/);
});

test("a folder with one GGUF file is a model, with two it is a question", async (t) => {
  const folder = temporaryFolder(t);
  await assert.rejects(openModel(folder), /no model: expected config\.json/);
  writeFileSync(join(folder, "a.gguf"), buildGguf({}, []));
  await assert.rejects(openModel(folder), /a\.gguf: .*"general\.architecture" is missing/);
  writeFileSync(join(folder, "b.gguf"), "");
  await assert.rejects(openModel(folder), /2 GGUF files; name one: a\.gguf, b\.gguf/);
  const adapter = temporaryFolder(t);
  writeFileSync(join(adapter, "adapter_config.json"), "{}");
  await assert.rejects(openModel(adapter), /an adapter, not a base model/);
});

test("what is no file is refused without being opened", { skip: process.platform === "win32" }, async (t) => {
  const folder = temporaryFolder(t);
  execFileSync("mkfifo", [join(folder, "config.json")]);
  await assert.rejects(openModelFolder(folder), /config\.json: not a file/);
  rmSync(join(folder, "config.json"));
  writeFileSync(join(folder, "config.json"), "{}");
  execFileSync("mkfifo", [join(folder, "model.safetensors"), join(folder, "model.gguf")]);
  await assert.rejects(openModelFolder(folder), /model\.safetensors: not a file/);
  assert.throws(() => readGgufHeader(join(folder, "model.gguf")), /model\.gguf: not a file/);
});

test("weights that are there twice, and an adapter beside them, are told", async (t) => {
  const folder = await modelFolder(t);
  assert.deepEqual((await openModelFolder(folder)).notices, []);
  writeFileSync(join(folder, "model.safetensors.index.json"), "{}");
  writeFileSync(join(folder, "adapter_config.json"), "{}");
  const notices = (await openModelFolder(folder)).notices!;
  assert.match(notices.join("|"), /has weights twice: model\.safetensors is read.*\|.*has an adapter too, which is not used/);
});
