import assert from "node:assert/strict";
import { copyFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { loadTokenizerFolder } from "../load-tokenizer.js";
import { Tokenizer } from "./tokenizer.js";

const fixtures = fileURLToPath(new URL("../../../../test/fixtures/", import.meta.url));

/** Made by test/fixtures/make_tokenizers.py. What the library panics on is null. */
interface Kind {
  readonly name: string;
  readonly json: unknown;
  readonly texts: readonly string[];
  readonly plain: readonly (readonly number[])[];
  readonly special: readonly (readonly number[])[];
  readonly sequences: readonly (readonly number[])[];
  readonly decoded: readonly (string | null)[];
  readonly decoded_without_special: readonly (string | null)[];
}

/** Made by test/fixtures/make_tokenizer_folders.py. */
interface Folders {
  readonly texts: readonly string[];
  readonly cases: readonly {
    readonly base: string;
    readonly config: unknown;
    readonly map: unknown;
    readonly roles: Readonly<Record<string, string>>;
    readonly special: readonly number[];
    readonly size: number;
    readonly ids: readonly (readonly number[])[];
    readonly decoded: readonly string[];
  }[];
}

const kinds = JSON.parse(await readFile(`${fixtures}tokenizers.json`, "utf8")) as readonly Kind[];
const folders = JSON.parse(await readFile(`${fixtures}tokenizer-folders.json`, "utf8")) as Folders;

for (const kind of kinds) {
  const tokenizer = new Tokenizer({ json: kind.json, roles: {}, stopIds: [], files: [], where: kind.name });

  test(`${kind.name}: ids of random texts are those of the tokenizers library`, () => {
    for (const [index, text] of kind.texts.entries())
      for (const special of [false, true])
        assert.deepEqual(
          [...tokenizer.encode(text, { special })],
          special ? kind.special[index] : kind.plain[index],
          `${JSON.stringify(text)}, ${special ? "with" : "without"} control tokens`,
        );
  });

  test(`${kind.name}: random ids decode as in the tokenizers library, at once and one by one`, () => {
    for (const [index, ids] of kind.sequences.entries())
      for (const special of [false, true]) {
        const expected = special ? kind.decoded[index] : kind.decoded_without_special[index];
        const stream = tokenizer.decodeStream({ special });
        const streamed = ids.map((id) => stream.push(id)).join("") + stream.end();
        assert.equal(streamed, tokenizer.decode(ids, { special }));
        if (expected !== null) assert.equal(streamed, expected, JSON.stringify(ids));
      }
  });
}

test("a model without a type is the first that has what it holds, as in the tokenizers library, and this is told", () => {
  const types = new Map<string, number>();
  for (const kind of kinds) {
    const { type, ...model } = (kind.json as { model: Record<string, unknown> }).model;
    const json = { ...(kind.json as object), model };
    const untyped = new Tokenizer({ json, roles: {}, stopIds: [], files: [], where: kind.name });
    assert.match(untyped.notices.join(), new RegExp(`states no type; it is read as ${type}`));
    types.set(String(type), (types.get(String(type)) ?? 0) + 1);
    for (const [index, text] of kind.texts.entries())
      assert.deepEqual([...untyped.encode(text, { special: false })], kind.plain[index], `${kind.name}: ${JSON.stringify(text)}`);
  }
  assert.deepEqual([...types.keys()].sort(), ["BPE", "WordLevel", "WordPiece"]);
});

test("companions that say something else are read together as transformers reads them", async () => {
  for (const { base, config, map, roles, special, size, ids, decoded } of folders.cases) {
    const folder = await mkdtemp(join(tmpdir(), "attune-tokenizer-"));
    const what = JSON.stringify({ config, map });
    try {
      await copyFile(join(fixtures, base, "tokenizer.json"), join(folder, "tokenizer.json"));
      if (config !== null) await writeFile(join(folder, "tokenizer_config.json"), JSON.stringify(config));
      if (map !== null) await writeFile(join(folder, "special_tokens_map.json"), JSON.stringify(map));
      const tokenizer = await loadTokenizerFolder(folder);
      const { bos_token, eos_token, pad_token } = tokenizer.roles;
      assert.deepEqual(
        Object.fromEntries(Object.entries({ bos_token, eos_token, pad_token }).filter(([, token]) => token !== undefined)),
        roles,
        what,
      );
      assert.deepEqual(
        [...tokenizer.controlIds].sort((a, b) => a - b),
        special,
        what,
      );
      assert.equal(tokenizer.vocabSize, size, what);
      for (const [index, text] of folders.texts.entries()) {
        const { before, after } = tokenizer.frame;
        const framed = [...before, ...tokenizer.encode(text, { special: true }), ...after];
        assert.deepEqual(framed, ids[index], `${what}: ${text}`);
        assert.equal(tokenizer.decode(framed), decoded[index], `${what}: ${text}`);
      }
    } finally {
      await rm(folder, { recursive: true });
    }
  }
});

test("what companions contradict is told", async () => {
  const folder = await mkdtemp(join(tmpdir(), "attune-tokenizer-"));
  try {
    await copyFile(join(fixtures, "chat/byte-level/tokenizer.json"), join(folder, "tokenizer.json"));
    await writeFile(join(folder, "special_tokens_map.json"), JSON.stringify({ eos_token: "<|im_end|>" }));
    const thought = { content: "<think>", special: true, normalized: false };
    const config = { eos_token: "</s>", bos_token: "<s>", add_bos_token: true };
    await writeFile(join(folder, "tokenizer_config.json"), JSON.stringify(config));
    const told = (await loadTokenizerFolder(folder)).notices.join("\n");
    assert.match(
      told,
      /eos_token is "<\/s>" in tokenizer_config.json and "<\|im_end\|>" in special_tokens_map.json; "<\|im_end\|>" is taken/,
    );
    assert.match(told, /add_bos_token is true .* no begin token is added/);
    await writeFile(join(folder, "tokenizer_config.json"), JSON.stringify({ ...config, added_tokens_decoder: { 435: thought } }));
    const again = (await loadTokenizerFolder(folder)).notices.join("\n");
    assert.match(again, /"<\/s>" is taken/);
    assert.match(again, /changes how "<think>"/);
  } finally {
    await rm(folder, { recursive: true });
  }
});
