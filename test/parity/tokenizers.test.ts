/**
 * Thousands of random texts and ids for each kind of tokenizer, and for SmolLM2's own, against the tokenizers library. Runs with ATTUNE_PEERS =
 * a venv that has tokenizers and transformers (`npm run test:parity`).
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { repetitions, temporaryFolder } from "../../src/io/testing/folders.js";
import { Tokenizer } from "../../src/text/tokenizer/tokenizer.js";
import { skipWithoutPeers, smolLM2Folder } from "../support/peers.js";

interface Kind {
  readonly name: string;
  readonly json?: unknown;
  readonly file?: string;
  readonly texts: readonly string[];
  readonly plain: readonly (readonly number[])[];
  readonly special: readonly (readonly number[])[];
  readonly sequences: readonly (readonly number[])[];
  readonly decoded: readonly (string | null)[];
  readonly decoded_without_special: readonly (string | null)[];
}

test("ids and decoded texts are those of the tokenizers library", { skip: skipWithoutPeers }, (t) => {
  const out = join(temporaryFolder(t), "kinds.json");
  const script = join(import.meta.dirname, "../../../test/fixtures/make_tokenizers.py");
  const args = [script, "--more", String(repetitions(2000, 20_000)), out, join(smolLM2Folder(), "tokenizer.json")];
  execFileSync(join(process.env.ATTUNE_PEERS!, "bin/python"), args, { stdio: "ignore" });
  for (const kind of JSON.parse(readFileSync(out, "utf8")) as readonly Kind[]) {
    const json: unknown = kind.json ?? JSON.parse(readFileSync(kind.file!, "utf8"));
    const tokenizer = new Tokenizer({ json, roles: {}, stopIds: [], files: [], where: kind.name });
    for (const [index, text] of kind.texts.entries())
      for (const special of [false, true]) {
        const expected = special ? kind.special[index] : kind.plain[index];
        assert.deepEqual([...tokenizer.encode(text, { special })], expected, `${kind.name}: ${JSON.stringify(text)}`);
      }
    for (const [index, ids] of kind.sequences.entries())
      for (const special of [false, true]) {
        const expected = special ? kind.decoded[index] : kind.decoded_without_special[index];
        if (expected !== null) assert.equal(tokenizer.decode(ids, { special }), expected, `${kind.name}: ${ids}`);
      }
  }
});
