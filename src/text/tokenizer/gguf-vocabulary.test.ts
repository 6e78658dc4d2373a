import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { readGgufHeader } from "../../io/gguf/header.js";
import { writeGguf } from "../../io/gguf/writer.js";
import { temporaryFolder } from "../../io/testing/folders.js";
import { loadTokenizerFolder } from "../load-tokenizer.js";
import { byteLevel, sentencepiece } from "../testing/byte-level.js";
import { ggufTokenizer } from "./gguf-tokenizer.js";
import { ggufVocabulary } from "./gguf-vocabulary.js";
import { Tokenizer } from "./tokenizer.js";

const texts = [
  "Hello, world! It's 12345 o'clock.",
  "  two spaces\n\n\ttab   end  ",
  "naïve mañana 你好世界 🙂 ∑∂ é́",
  "def f(x):\n    return x**2  # ok",
  "<s> </s> <unk> <|im_start|>user [INST] <0x0A>",
  "",
];

async function throughGguf(t: TestContext, tokenizer: Tokenizer, rows: number): Promise<Tokenizer> {
  const path = join(temporaryFolder(t), "vocabulary.gguf");
  await writeGguf(path, ggufVocabulary(tokenizer, { rows, template: "{{ messages }}", where: "test" }), []);
  return new Tokenizer({ ...ggufTokenizer(readGgufHeader(path).metadata, path), embeddingRows: rows });
}

for (const [name, tokenizer] of [
  ["byte-level", byteLevel],
  ["sentencepiece", sentencepiece],
] as const) {
  test(`a ${name} tokenizer comes back from a GGUF file with the same ids`, async (t) => {
    const back = await throughGguf(t, tokenizer, tokenizer.vocabSize + 3);
    for (const text of texts)
      for (const special of [false, true]) {
        const ids = tokenizer.encode(text, { special });
        assert.deepEqual(back.encode(text, { special }), ids, JSON.stringify(text));
        assert.equal(back.decode(ids, { special: true }), tokenizer.decode(ids, { special: true }));
      }
    assert.deepEqual(back.roles, tokenizer.roles);
    assert.deepEqual(back.controlIds, tokenizer.controlIds);
    assert.deepEqual([back.bosId, back.eosId, back.addsBos], [tokenizer.bosId, tokenizer.eosId, tokenizer.addsBos]);
    assert.equal(back.chatTemplate, "{{ messages }}");
    assert.equal(back.idOf(`[PAD${tokenizer.vocabSize + 2}]`), tokenizer.vocabSize + 2);
  });
}

test("a way to split text that llama.cpp has no name for is refused", async (t) => {
  const folder = temporaryFolder(t);
  for (const { name, contents } of byteLevel.files()) {
    const json = JSON.parse(contents) as Record<string, unknown>;
    if (name === "tokenizer.json") json.pre_tokenizer = { type: "Whitespace" };
    writeFileSync(join(folder, name), JSON.stringify(json));
  }
  const other = await loadTokenizerFolder(folder);
  assert.throws(() => ggufVocabulary(other, { rows: 500, template: undefined, where: "model" }), {
    code: "MODEL",
    message: /^model: this tokenizer cannot go into a GGUF file: its way of splitting text .* gpt-2, .*qwen2/,
  });
});
