import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { loadEngine } from "../engine/load.js";
import { openModelFolder } from "../io/hf-folder.js";
import { inPieces, pieceBytes } from "../io/safetensors.js";
import { loadModel, sourceOf } from "./load.js";
import { writeRandomModel } from "./random-model.js";

test("weights of several pieces come from a file and go to one byte by byte", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "attune-load-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const shape = { hidden_size: 192, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1 };
  const config = { model_type: "llama", vocab_size: 12_345, ...shape, max_position_embeddings: 8, tie_word_embeddings: true };
  await writeRandomModel(folder, config, 1);
  const files = await openModelFolder(folder);
  const model = await loadModel({ kernels: loadEngine(), compute: "f32" }, files);
  const name = "model.embed_tokens.weight";
  const stored = Buffer.from(await files.readTensor(name));
  assert.ok(stored.length > 2 * pieceBytes);
  const pieces: Buffer[] = [];
  const { value } = new Map(model.namedParameters()).get(name)!;
  for await (const piece of inPieces(sourceOf(name, value).data())) pieces.push(Buffer.from(piece));
  assert.equal(pieces.length, 3);
  assert.ok(Buffer.concat(pieces).equals(stored));
  model.dispose();
});

test("a matrix that files hold as (in, out), of several pieces, is turned on its way in and back on its way out", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "attune-load-"));
  t.after(() => rmSync(folder, { recursive: true }));
  await writeRandomModel(folder, { model_type: "gpt2", vocab_size: 8, n_embd: 600, n_head: 1, n_layer: 1, n_positions: 8 }, 1);
  const files = await openModelFolder(folder);
  const model = await loadModel({ kernels: loadEngine(), compute: "f32" }, files);
  const [name, { value }] = [...model.namedParameters()].find(
    ([, { size, isStoredTransposed }]) => isStoredTransposed && size > 1e6,
  )!;
  const stored = await files.readTensor(name);
  assert.ok(stored.length > pieceBytes);
  const [inFeatures, outFeatures] = [value.shape[1]!, value.shape[0]!];
  const [theirs, ours] = [new Float32Array(stored.slice().buffer), new Float32Array(value.size)];
  await model.device.kernels.read(value.id, 0, ours);
  for (const [i, o] of [
    [0, 1],
    [1, 0],
    [inFeatures - 1, outFeatures - 1],
    [599, 7],
  ] as const)
    assert.equal(ours[o * inFeatures + i], theirs[i * outFeatures + o]);
  const back: Buffer[] = [];
  for await (const piece of inPieces(sourceOf(name, value, true).data())) back.push(Buffer.from(piece));
  assert.ok(Buffer.concat(back).equals(Buffer.from(stored)));
  model.dispose();
});
