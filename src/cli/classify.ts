import { createInterface } from "node:readline";
import type { AddCommand } from "./command.js";
import { required } from "./options.js";
import { whileDownloading } from "./progress-bar.js";
import { escapeControls, type Io } from "./terminal.js";

const linesAtOnce = 16;

/** `attune classify`: the class of each text, or of each line of the input, with its score. */
export const classify: AddCommand = (program, { io, parts }) => {
  program
    .command("classify")
    .summary("tell which class texts belong to")
    .description("Print the class of each text, or of each line of the input, its score and the text.")
    .usage("--model MODEL [--adapter FOLDER] [text ...]")
    .argument("[texts...]")
    .option("-m, --model <model>", "a classifier, or the base of the adapter: a folder, a GGUF file, or a name on the hub")
    .option("-a, --adapter <folder>", "the output_dir of a run of stage classification, or such an adapter of PEFT's")
    .option("--json", "a JSON object a line, with the score of every class")
    .addHelpText(
      "after",
      `
Examples:
  attune classify --model all-MiniLM-L6-v2 --adapter runs/reviews "the best soup in town"
  attune classify --model runs/reviews-full --json < reviews.txt`,
    )
    .action(async (texts, { model: name, adapter, json }) => {
      const model = required("model", name);
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
