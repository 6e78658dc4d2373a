import { createInterface } from "node:readline";
import { requiredOption } from "./options.js";
import type { Parts } from "./parts.js";
import { ProgressBar } from "./progress-bar.js";
import { escapeControls, type Io, styleFor } from "./terminal.js";

const linesAtOnce = 16;

/** `attune classify`: the class of each text, or of each line of the input, with its score. */
export async function classify(texts: readonly string[], options: Record<string, string>, parts: Parts, io: Io): Promise<number> {
  const model = requiredOption("model", options.model);
  const bar = new ProgressBar(io);
  const classifier = await parts.openClassifier({
    model,
    adapter: options.adapter,
    onNotice: (message) => io.stderr.write(`${styleFor(io.stderr, io.env).dim(escapeControls(message))}\n`),
    onProgress: (doneBytes, totalBytes) => bar.showBytes(`downloading ${model}`, doneBytes, totalBytes),
  });
  bar.clear();
  const print = async (some: readonly string[]) => {
    for (const [i, { label, probabilities }] of (await classifier.classify(some)).entries()) {
      const row = { text: some[i], label, probabilities };
      const plain = `${label}\t${probabilities[label]!.toFixed(4)}\t${some[i]}`;
      io.stdout.write(`${options.json ? JSON.stringify(row) : escapeControls(plain)}\n`);
    }
  };
  try {
    if (texts.length > 0) await print(texts);
    else {
      let lines: string[] = [];
      for await (const line of createInterface({ input: io.stdin, crlfDelay: Number.POSITIVE_INFINITY })) {
        if (line.trim() !== "") lines.push(line);
        if (lines.length < linesAtOnce) continue;
        await print(lines);
        lines = [];
      }
      await print(lines);
    }
    return 0;
  } finally {
    classifier.close();
  }
}
