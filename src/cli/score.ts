import type { AddCommand } from "./command.js";
import { whileDownloading } from "./progress-bar.js";
import { modelFor, textOf } from "./recipe-use.js";
import { escapeControls } from "./terminal.js";

/** `attune score`: what a reward model says of the answers in files. */
export const score: AddCommand = (program, { io, words: { score: words }, parts }) => {
  program
    .command("score")
    .summary(words.summary)
    .description(words.description)
    .usage("[RECIPE | FOLDER] FILE ...")
    .argument("<files...>")
    .option("-m, --model <model>", words.model)
    .option("-a, --adapter <folder>", words.adapter)
    .option("--json", words.json)
    .addHelpText("after", words.examples)
    .action(async (args: string[], { json, ...flags }) => {
      const { model, adapter, rest: files, use } = await modelFor("score", args, flags);
      const template = textOf(use, "template");
      const scorer = await whileDownloading(model, io, (watch) => parts.openScorer({ model, adapter, template, ...watch }));
      const tally = { pairs: 0, right: 0 };
      try {
        for await (const { where, scores } of scorer.score(files)) {
          const { chosen, rejected } = scores;
          if (chosen !== undefined && rejected !== undefined) {
            tally.pairs++;
            if (chosen > rejected) tally.right++;
          }
          const numbers = Object.values(scores).map((value) => value.toFixed(4));
          io.stdout.write(`${json ? JSON.stringify({ ...scores, where }) : escapeControls([...numbers, where].join("\t"))}\n`);
        }
      } finally {
        scorer.close();
      }
      if (tally.pairs > 0) io.stderr.write(`${words.right(tally.right, tally.pairs)}\n`);
    });
};
