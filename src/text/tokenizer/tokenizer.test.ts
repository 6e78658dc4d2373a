import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import fc from "fast-check";
import { ModelError } from "../../errors.js";
import { loadTokenizer, loadTokenizerFolder, readChatTemplate } from "../load-tokenizer.js";
import { byteLevel, fixtures, readFixture, sentencepiece } from "../testing/byte-level.js";
import { byteTokenizer } from "./byte-tokenizer.js";
import { ggufTokenizer } from "./gguf-tokenizer.js";
import { Tokenizer, type TokenizerParts } from "./tokenizer.js";

const bytes = byteTokenizer();
const anyText = fc.string({ unit: "binary", maxLength: 40 });
const withControls = fc
  .array(fc.oneof(anyText, fc.constantFrom("<|im_end|>", "[INST]", "<s>", "<think>", "<0x0A>", "▁", " ")), { maxLength: 6 })
  .map((parts) => parts.join(""));

const tokenizers: readonly (readonly [string, Tokenizer])[] = [
  ["byte-level", byteLevel],
  ["sentencepiece", sentencepiece],
  ["bytes", bytes],
];

/** The byte tokenizer's file with changes: what damaged and hostile files are made from. */
function build(change: (json: Record<string, unknown> & { model: Record<string, unknown> }) => void): Tokenizer {
  const json = JSON.parse(bytes.files()[0]!.contents);
  change(json);
  const parts: TokenizerParts = { json, roles: {}, stopIds: [], files: [], where: "tokenizer.json" };
  return new Tokenizer(parts);
}

test("any text survives encoding and decoding, token by token and at once", () => {
  for (const [name, tokenizer] of tokenizers) {
    fc.assert(
      fc.property(withControls, fc.boolean(), (text, special) => {
        const ids = tokenizer.encode(text, { special });
        const stream = tokenizer.decodeStream({ special: true });
        let streamed = "";
        for (const id of ids) {
          const piece = stream.push(id);
          assert.ok(!/\p{Surrogate}/u.test(piece), "half a character");
          streamed += piece;
        }
        streamed += stream.end();
        assert.equal(streamed, tokenizer.decode(ids, { special: true }));
        // Sentencepiece cannot tell U+2581 from a space, and puts a space after every added token.
        const comparable = name === "sentencepiece" ? text.replaceAll("▁", " ") : text;
        if (name !== "sentencepiece" || !(special || text.includes("<think>"))) assert.equal(streamed, comparable, name);
      }),
      { numRuns: 300 },
    );
  }
});

test("plain text never becomes a control token", () => {
  for (const [, tokenizer] of tokenizers) {
    fc.assert(
      fc.property(withControls, (text) => {
        for (const id of tokenizer.encode(text, { special: false }))
          assert.ok(!tokenizer.controlIds.has(id) || id === tokenizer.unkId);
      }),
      { numRuns: 300 },
    );
  }
});

test("a vocabulary that takes whole words does not give control tokens for their names", () => {
  const whole = build((json) => {
    json.model.ignore_merges = true;
    json.pre_tokenizer = { type: "ByteLevel", add_prefix_space: false, use_regex: false };
  });
  const text = "<|im_end|>";
  assert.equal(whole.encode(text, { special: true }).length, 1);
  const ids = whole.encode(text, { special: false });
  assert.equal(ids.length, text.length);
  assert.equal(whole.decode(ids), text);
});

test("control tokens are found where they are asked for; other added tokens always", () => {
  const ids = byteLevel.encode("<s>[INST]<think>", { special: true });
  assert.deepEqual(
    [...ids],
    ["<s>", "[INST]", "<think>"].map((token) => byteLevel.idOf(token)),
  );
  assert.equal(byteLevel.encode("<think>", { special: false }).length, 1);
  assert.ok(byteLevel.encode("[INST]", { special: false }).length > 1);
  assert.equal(byteLevel.decode(ids), "<think>");
});

test("half a character is held back, and what is no character comes out as U+FFFD", () => {
  const stream = bytes.decodeStream();
  const smile = [...new TextEncoder().encode("🙂")];
  assert.deepEqual(
    smile.map((byte) => stream.push(byte)),
    ["", "", "", "🙂"],
  );
  assert.equal(stream.push(0xf0) + stream.push(0x9f) + stream.end(), "\uFFFD");
  assert.equal(bytes.decode([0xff, 0x41, 0xe4]), "\uFFFDA\uFFFD");
  const mark = bytes.encode("\uFEFFa", { special: false });
  assert.equal(bytes.decode(mark), "\uFEFFa", "a byte order mark is text like any other");
});

test("spaces around tokens that take them go with the token", () => {
  const strict = build((json) => {
    for (const token of json.added_tokens as Record<string, unknown>[]) Object.assign(token, { lstrip: true, rstrip: true });
  });
  const pieces = strict.split("a  <|im_end|> \n b <|im_start|>");
  assert.deepEqual(
    pieces.map(({ text, start }) => [text, start]),
    [
      ["a", 0],
      ["<|im_end|>", 3],
      ["b", 16],
      ["<|im_start|>", 18],
    ],
  );
});

test("roles, stop tokens and the size of the vocabulary come from the files", () => {
  assert.equal(byteLevel.bosId, byteLevel.idOf("<s>"));
  assert.equal(byteLevel.eosId, byteLevel.idOf("</s>"));
  for (const token of ["</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"])
    assert.ok(byteLevel.stopIds.has(byteLevel.idOf(token)!), token);
  assert.ok(!byteLevel.stopIds.has(byteLevel.idOf("<|im_start|>")!));
  assert.equal(byteLevel.vocabSize, byteLevel.idOf("</think>")! + 1);
  assert.equal(byteLevel.prefixesSpace, false);
  assert.equal(sentencepiece.prefixesSpace, true);
  assert.deepEqual([...bytes.stopIds].sort(), [256, 258]);
});

test("the files written beside an adapter read back as the same tokenizer", async () => {
  const folder = await mkdtemp(join(tmpdir(), "attune-tokenizer-"));
  try {
    for (const { name, contents } of bytes.files()) await writeFile(join(folder, name), contents);
    const again = await loadTokenizerFolder(folder);
    const text = "<|im_start|>user\nhé🙂<|im_end|>";
    assert.deepEqual(again.encode(text, { special: true }), bytes.encode(text, { special: true }));
    assert.deepEqual([again.chatTemplate, again.bosId, again.eosId], [bytes.chatTemplate, bytes.bosId, bytes.eosId]);
    assert.deepEqual(again.stopIds, bytes.stopIds);
    assert.equal(await readChatTemplate(folder), bytes.chatTemplate);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("chat templates are found in tokenizer_config.json, also among several", async () => {
  const folder = await mkdtemp(join(tmpdir(), "attune-tokenizer-"));
  const write = (chat_template: unknown) => writeFile(join(folder, "tokenizer_config.json"), JSON.stringify({ chat_template }));
  try {
    assert.equal(await readChatTemplate(folder), undefined);
    await write("plain");
    assert.equal(await readChatTemplate(folder), "plain");
    await write([
      { name: "tool_use", template: "tools" },
      { name: "default", template: "chat" },
    ]);
    assert.equal(await readChatTemplate(folder), "chat");
    await write(7);
    await assert.rejects(readChatTemplate(folder), { code: "MODEL", message: /chat_template/ });
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("a GGUF file's sentencepiece tokenizer: merges as transformers makes them, ids as in the tokenizer.json", async () => {
  const { metadata, transformers_merges } = readFixture<{ metadata: Record<string, unknown>; transformers_merges: string[][] }>(
    "gguf-sentencepiece.json",
  );
  const ggml = Object.fromEntries(Object.entries(metadata).map(([key, value]) => [`tokenizer.ggml.${key}`, value]));
  const parts = ggufTokenizer({ ...ggml, "tokenizer.ggml.model": "llama" }, "m.gguf");
  assert.deepEqual((parts.json as { model: { merges: unknown } }).model.merges, transformers_merges);

  const config = { vocab_size: sentencepiece.vocabSize };
  const model = { path: "m.gguf", format: "gguf" as const, config, tensors: new Map(), readTensor: assert.fail, fingerprint: "" };
  const tokenizer = await loadTokenizer({ ...model, ggufMetadata: { ...ggml, "tokenizer.ggml.model": "llama" } });
  for (const text of ["Hello, world!", "  two spaces", "你好 🙂", "<s>[INST] Hello [/INST]", "<think>what</think>", ""])
    for (const special of [true, false])
      assert.deepEqual(tokenizer.encode(text, { special }), sentencepiece.encode(text, { special }), JSON.stringify(text));
  assert.deepEqual([tokenizer.bosId, tokenizer.eosId, tokenizer.unkId, tokenizer.addsBos], [1, 2, 0, true]);
});

test("a GGUF file's byte-level tokenizer", async () => {
  const json = readFixture<{
    model: { vocab: Record<string, number>; merges: string[][] };
    added_tokens: { id: number; content: string; special: boolean }[];
  }>("byte-level/tokenizer.json");
  const tokens: string[] = [];
  for (const [token, id] of Object.entries(json.model.vocab)) tokens[id] = token;
  const types = tokens.map(() => 1);
  for (const { id, content, special } of json.added_tokens) [tokens[id], types[id]] = [content, special ? 3 : 4];
  const metadata = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": Int32Array.from(types),
    "tokenizer.ggml.merges": json.model.merges.map((pair) => pair.join(" ")),
    "tokenizer.ggml.eos_token_id": byteLevel.idOf("</s>"),
    "tokenizer.chat_template": "{{ messages }}",
  };
  const tokenizer = new Tokenizer(ggufTokenizer(metadata, "m.gguf"));
  const text = "<s>Hello, it's 12345 things!\n\n你好 🙂 <think>";
  assert.deepEqual(tokenizer.encode(text, { special: true }), byteLevel.encode(text, { special: true }));
  assert.equal(tokenizer.chatTemplate, "{{ messages }}");

  const broken: [RegExp, Record<string, unknown>][] = [
    [/no vocabulary/, { "tokenizer.ggml.tokens": undefined }],
    [/list of strings/, { "tokenizer.ggml.tokens": [1, 2] }],
    [/stands twice/, { "tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1] }],
    [/token types/, { "tokenizer.ggml.token_type": [1] }],
    [/eos_token_id is 99999/, { "tokenizer.ggml.eos_token_id": 99999 }],
    [/"bert" is not supported/, { "tokenizer.ggml.model": "bert" }],
    [/pre-tokenizer "nonsense"/, { "tokenizer.ggml.pre": "nonsense" }],
    [/pre-tokenizer "__proto__"/, { "tokenizer.ggml.pre": "__proto__" }],
    [/no merges/, { "tokenizer.ggml.merges": undefined }],
    [/no scores/, { "tokenizer.ggml.model": "llama" }],
  ];
  for (const [message, change] of broken)
    assert.throws(() => ggufTokenizer({ ...metadata, ...change }, "m.gguf"), { code: "MODEL", message });
});

test("damaged and hostile tokenizer files are refused with their fault named", () => {
  let deep: unknown = null;
  for (let level = 0; level < 20_000; level++) deep = { type: "Sequence", pretokenizers: [deep] };
  const faults: [RegExp, (json: Record<string, unknown> & { model: Record<string, unknown> }) => void][] = [
    [/no "model"/, (json) => Object.assign(json, { model: null })],
    [/version "2.0"/, (json) => Object.assign(json, { version: "2.0" })],
    [/"Unigram" is not supported/, (json) => Object.assign(json.model, { type: "Unigram" })],
    [/map tokens to ids/, (json) => Object.assign(json.model, { vocab: ["a"] })],
    [/vocabulary is empty/, (json) => Object.assign(json.model, { vocab: {} })],
    [/has id -1/, (json) => Object.assign(json.model, { vocab: { a: -1 } })],
    [/has id 1e\+300/, (json) => Object.assign(json.model, { vocab: { a: 1e300 } })],
    [/has id "0"/, (json) => Object.assign(json.model, { vocab: { a: "0" } })],
    [/more than one token/, (json) => Object.assign(json.model, { vocab: { a: 0, b: 0 } })],
    [/merge 0 .* expected two tokens/, (json) => Object.assign(json.model, { merges: ["abc"] })],
    [/vocabulary lacks/, (json) => Object.assign(json.model, { merges: ["a b"] })],
    [/is Unigram by its vocabulary/, (json) => Object.assign(json, { model: { unk_id: 0, vocab: [["a", 0]] } })],
    [/does not hold what any type needs/, (json) => Object.assign(json, { model: { vocab: { a: 0 } } })],
    [/type null is not supported/, (json) => Object.assign(json.model, { type: null })],
    [/"model" has the unknown option "alpha"/, (json) => Object.assign(json.model, { alpha: 0.1 })],
    [/"model.dropout" is 0.1/, (json) => Object.assign(json.model, { dropout: 0.1 })],
    [/"model.fuse_unk" is "yes"/, (json) => Object.assign(json.model, { fuse_unk: "yes" })],
    [
      /needs a number/,
      (json) =>
        Object.assign(json, { model: { type: "WordPiece", unk_token: "a", continuing_subword_prefix: "##", vocab: { a: 0 } } }),
    ],
    [/"model.merges"/, (json) => Object.assign(json.model, { merges: {} })],
    [/added_tokens\[0\]/, (json) => Object.assign(json, { added_tokens: [{ id: 1 }] })],
    [/added_tokens\[0\]/, (json) => Object.assign(json, { added_tokens: [{ id: 1, content: "" }] })],
    [/contradicts itself/, (json) => Object.assign(json, { added_tokens: [{ id: 3, content: "new" }] })],
    [
      /"lstrip" has to be true or false/,
      (json) => Object.assign(json, { added_tokens: [{ id: 256, content: "new", lstrip: 1 }] }),
    ],
    [/unknown option "weight"/, (json) => Object.assign(json, { added_tokens: [{ id: 256, content: "new", weight: 1 }] })],
    [/"added_tokens" has to be/, (json) => Object.assign(json, { added_tokens: "no" })],
    [
      /pre_tokenizer \(Nonsense\): this kind is not supported/,
      (json) => Object.assign(json, { pre_tokenizer: { type: "Nonsense" } }),
    ],
    [
      /a group that is not closed/,
      (json) => Object.assign(json, { pre_tokenizer: { type: "Split", pattern: { Regex: "(((" } } }),
    ],
    [/more than 20 deep/, (json) => Object.assign(json, { pre_tokenizer: deep })],
    [/decoder \(CTC\): this kind is not supported/, (json) => Object.assign(json, { decoder: { type: "CTC" } })],
  ];
  for (const [message, change] of faults) assert.throws(() => build(change), { code: "MODEL", message }, String(message));
  assert.doesNotThrow(() =>
    build((json) => {
      json.added_tokens = [];
      Object.assign(json.model, { vocab: JSON.parse('{"__proto__": 300, "constructor": 301}') });
    }),
  );
});

test("a regular expression that never ends is stopped", () => {
  const hostile = build((json) => {
    json.pre_tokenizer = {
      type: "Sequence",
      pretokenizers: [{ type: "Split", pattern: { Regex: "(a+)+$" }, behavior: "Isolated", invert: false }, json.pre_tokenizer],
    };
  });
  assert.equal(hostile.decode(hostile.encode("banana", { special: false })), "banana");
  assert.throws(() => hostile.encode(`${"a".repeat(60)}b`, { special: false }), { code: "MODEL", message: /never ends/ });
});

test("a normalizer that never ends, or makes a flood of a text, ends in an error, while the file is loaded too", () => {
  const evil = { type: "Replace", pattern: { Regex: "(a+)+$" }, content: "b" };
  const added = { id: 259, content: `${"a".repeat(60)}!`, normalized: true };
  const doubling = { type: "Replace", pattern: { Regex: "." }, content: "aa" };
  const faults: [RegExp, object][] = [
    [/never ends/, evil],
    [/longer than/, { type: "Sequence", normalizers: Array(60).fill(doubling) }],
    [/longer than/, { type: "Replace", pattern: { Regex: "" }, content: "b".repeat(1e6) }],
    [/longer than/, { type: "Sequence", normalizers: Array(90).fill({ type: "Prepend", prepend: "b".repeat(1e5) }) }],
  ];
  for (const [message, normalizer] of faults) {
    const change = (json: Record<string, unknown>) =>
      Object.assign(json, { normalizer, added_tokens: [...(json.added_tokens as []), added] });
    assert.throws(() => build(change), { code: "MODEL", message }, JSON.stringify(normalizer).slice(0, 100));
  }
  const decoding = build((json) =>
    Object.assign(json, { decoder: evil, model: { ...json.model, vocab: { [added.content]: 0 } }, added_tokens: [] }),
  );
  assert.throws(() => decoding.decode([0]), { code: "MODEL", message: /never ends/ });
});

test("text of millions of characters is encoded, and a stretch that no pattern can hold is named", () => {
  const long = "It's the 12th line of text, 你好.\n".repeat(200_000);
  for (const tokenizer of [byteLevel, sentencepiece]) {
    const line = tokenizer.encode(long.slice(0, long.indexOf("\n") + 1), { special: false });
    assert.ok(tokenizer.encode(long, { special: false }).length >= 199_999 * (line.length - 1));
  }
  assert.throws(() => byteLevel.encode("你".repeat(30_000_000), { special: false }), {
    code: "DATA",
    message: /30000000 characters/,
  });
});

test("a tokenizer of another model is refused, added tokens without embeddings are left out", async () => {
  const folder = {
    path: `${fixtures}byte-level`,
    format: "safetensors" as const,
    tensors: new Map(),
    readTensor: assert.fail,
    fingerprint: "",
  };
  await assert.rejects(loadTokenizer({ ...folder, config: { vocab_size: 100 } }), {
    code: "MODEL",
    message: /belongs to another model/,
  });
  const rows = byteLevel.idOf("<think>")!;
  const tokenizer = await loadTokenizer({ ...folder, config: { vocab_size: rows, eos_token_id: [7, 8] } });
  assert.match(tokenizer.notices.join(), /<think>, <\/think> have no embedding/);
  assert.equal(tokenizer.idOf("<think>"), undefined);
  assert.ok(tokenizer.encode("<think>", { special: true }).every((id) => id < rows));
  assert.ok(tokenizer.stopIds.has(7) && tokenizer.stopIds.has(8));
});

test("missing and broken files are named", async () => {
  const folder = await mkdtemp(join(tmpdir(), "attune-tokenizer-"));
  try {
    await assert.rejects(loadTokenizerFolder(folder), { code: "MODEL", message: /there is no tokenizer.json/ });
    await writeFile(join(folder, "tokenizer.json"), '{"model": ');
    await assert.rejects(loadTokenizerFolder(folder), { code: "MODEL", message: /tokenizer.json: this is not JSON/ });
    await writeFile(join(folder, "tokenizer.json"), Buffer.from([0x7b, 0xff, 0x7d]));
    await assert.rejects(loadTokenizerFolder(folder), { code: "MODEL", message: /not UTF-8/ });
    await writeFile(join(folder, "tokenizer.json"), "[1]");
    await assert.rejects(loadTokenizerFolder(folder), ModelError);
    await writeFile(join(folder, "tokenizer.json"), `${'{"a":'.repeat(100_000)}1${"}".repeat(100_000)}`);
    await assert.rejects(loadTokenizerFolder(folder), ModelError);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("WordPiece: words in pieces between [CLS] and [SEP], and back", () => {
  const words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "hello", "你", "!"];
  const special = (content: string) => ({ content, id: words.indexOf(content), special: true, normalized: false });
  const tokenizer = new Tokenizer({
    json: {
      model: {
        type: "WordPiece",
        unk_token: "[UNK]",
        continuing_subword_prefix: "##",
        max_input_chars_per_word: 100,
        vocab: Object.fromEntries(words.map((word, id) => [word, id])),
      },
      added_tokens: ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(special),
      normalizer: { type: "BertNormalizer", clean_text: true, handle_chinese_chars: true, strip_accents: null, lowercase: true },
      pre_tokenizer: { type: "BertPreTokenizer" },
      post_processor: { type: "BertProcessing", cls: ["[CLS]", 2], sep: ["[SEP]", 3] },
      decoder: { type: "WordPiece", prefix: "##", cleanup: true },
    },
    roles: {},
    stopIds: [],
    files: [],
    where: "tokenizer.json",
  });
  const ids = tokenizer.encodeFramed("Unaffable 你HELLO! zebra");
  assert.deepEqual([...ids], [2, 4, 5, 6, 8, 7, 9, 1, 3]);
  assert.deepEqual(
    [...tokenizer.encodeFramed("unaffable", 4)],
    [2, 4, 5, 3],
    "what is cut is the text, not what stands around it",
  );
  assert.equal(tokenizer.decode(ids), "unaffable 你 hello!");
  assert.ok(!tokenizer.encode("[CLS]", { special: false }).includes(2), "text never becomes a control token");
});
