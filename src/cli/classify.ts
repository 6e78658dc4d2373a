import { createInterface } from "node:readline";
import type { AddCommand } from "./command.js";
import { whileDownloading } from "./progress-bar.js";
import { modelFor } from "./recipe-use.js";
import { escapeControls, type Io } from "./terminal.js";

const linesAtOnce = 16;

/** `attune classify`: the class of each text, or of each line of the input, with its score. */
export const classify: AddCommand = (program, { io, words: { classify: words }, parts }) => {
  program
    .command("classify")
    .summary(words.summary)
    .description(words.description)
    .usage("[RECIPE | FOLDER] [--model MODEL] [--adapter FOLDER] [text ...]")
    .argument("[texts...]")
    .option("-m, --model <model>", words.model)
    .option("-a, --adapter <folder>", words.adapter)
    .option("--json", words.json)
    .addHelpText("after", words.examples)
    .action(async (args, { json, ...flags }) => {
      const { model, adapter, rest: texts } = await modelFor("classify", args, flags);
      const classifier = await whileDownloading(model, io, (watch) => parts.openClassifier({ model, adapter, ...watch }));
      try {
        for await (const some of texts.length > 0 ? [texts] : linesOf(io)) {
          for (const [i, { label, probabilities }] of (await classifier.classify(some)).entries()) {
            const plain = `${label}\t${probabilities[label]!.toFixed(4)}\t${some[i]}`;
            io.stdout.write(`${json ? JSON.stringify({ text: some[i], label, probabilities }) : escapeControls(plain)}\n`);
          }
        }
      } finally {
        classifier.close();
      }
    });
};

/** The lines of the input that are not empty, some at once. */
async function* linesOf({ stdin }: Io): AsyncGenerator<string[]> {
  let lines: string[] = [];
  for await (const line of createInterface({ input: stdin, crlfDelay: Number.POSITIVE_INFINITY })) {
    if (line.trim() !== "") lines.push(line);
    if (lines.length < linesAtOnce) continue;
    yield lines;
    lines = [];
  }
  if (lines.length > 0) yield lines;
}
