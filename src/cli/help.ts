import type { CommandUnknownOpts } from "@commander-js/extra-typings";
import { ConfigError } from "../errors.js";
import type { AddCommand } from "./command.js";

/** `attune help [command]`: the same as --help of that command, and so in no list of the help. */
export const help: AddCommand = (program, { words: { program: words } }) => {
  program
    .command("help", { hidden: true })
    .summary(words.help)
    .description(words.help)
    .usage("[command]")
    .argument("[command...]")
    .action((names) => {
      let command: CommandUnknownOpts = program;
      for (const name of names) {
        const inside = command.commands.find((each) => each.name() === name);
        if (inside === undefined) {
          const known = command
            .createHelp()
            .visibleCommands(command)
            .map((each) => each.name());
          throw new ConfigError(`unknown command '${name}'${known.length > 0 ? `; there are ${known.join(", ")}` : ""}`);
        }
        command = inside;
      }
      command.help();
    });
};
