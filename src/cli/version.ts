import type { AddCommand } from "./command.js";

/** `attune version`: the same as --version, and so in no list of the help. */
export const version: AddCommand = (program, { io, words, version: own }) => {
  program
    .command("version", { hidden: true })
    .summary(words.program.version)
    .description(words.program.version)
    .action(() => {
      io.stdout.write(`${own}\n`);
    });
};
