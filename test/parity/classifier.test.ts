/** Encoders and classifiers against transformers and PEFT. */
import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../../src/core/rng.js";
import { scope } from "../../src/core/tensor.js";
import { openModelFolder } from "../../src/io/hf-folder.js";
import { loadModel } from "../../src/models/load.js";
import { packSequences } from "../../src/models/token-batch.js";
import { loadTokenizer } from "../../src/text/load-tokenizer.js";
import { assertClose } from "../support/assert-close.js";
import { device } from "../support/gradient-check.js";
import { runPython, skipWithoutPeers } from "../support/peers.js";
import { readTensorFile } from "../support/tensors.js";

const skip = skipWithoutPeers;
const folder = () => mkdtempSync(join(tmpdir(), "attune-classifier-"));

/** Latin, Chinese, accents, emoji, nothing at all, and noise of rare characters. */
function manyTexts(): string[] {
  const rng = new Rng(1);
  const blocks = [
    [0x20, 0x7f],
    [0xa0, 0x600],
    [0x4e00, 0x9fff],
    [0x1f300, 0x1f600],
    [0x2000, 0x2100],
  ] as const;
  const noise = () =>
    Array.from({ length: 30 }, () => {
      const [from, to] = blocks[rng.below(blocks.length)]!;
      return String.fromCodePoint(from + rng.below(to - from));
    }).join("");
  const written = [
    ...["The quick brown fox jumps over the lazy dog.", "unaffable ".repeat(100), "Café naïve ÅÉÎ", "don't: 1,000.50 $5 a_b"],
    ...["你好，世界！今天天气很好。", "日本語 テスト", "한국어 텍스트", "नमस्ते दुनिया", "مرحبا بالعالم", "Ὀδυσσεύς İstanbul ß"],
    ...[
      "",
      "  ",
      "tab\tnew\nline",
      "e\u0301 combining",
      "hello\u200bworld\u00ad",
      "😀 👩‍👩‍👧 ﬁ ½ ²",
      "\u3000wide\u0000null\ufffd",
      "𠀀 𝒳",
    ],
  ];
  return [...written, ...Array.from({ length: 120 }, noise)];
}

test("all-MiniLM-L6-v2: token ids and hidden states are those of transformers", { skip, timeout: 600_000 }, async () => {
  const path = runPython("classifier.py", ["minilm"]).trim();
  const texts = manyTexts();
  const work = folder();
  writeFileSync(join(work, "texts.json"), JSON.stringify(texts));
  runPython("classifier.py", ["hidden", "--model", path, "--texts", join(work, "texts.json"), "--out", join(work, "out")]);
  const expected = await readTensorFile(join(work, "out"));

  const files = await openModelFolder(path);
  const tokenizer = await loadTokenizer(files);
  const model = await loadModel(device, files);
  const rows = texts.map((text) => tokenizer.encodeFramed(text, 128));
  for (const [i, ids] of rows.entries()) assert.deepEqual([...ids], [...expected.get(`ids.${i}`)!], JSON.stringify(texts[i]));
  const hidden = scope(() => model.hidden(packSequences(rows)));
  const values = await hidden.read();
  let at = 0;
  for (const [i, ids] of rows.entries()) {
    const size = ids.length * model.shape.width;
    assertClose(values.subarray(at, at + size), expected.get(`hidden.${i}`)!, 1e-4, JSON.stringify(texts[i]));
    at += size;
  }
  hidden.dispose();
  model.dispose();
});
