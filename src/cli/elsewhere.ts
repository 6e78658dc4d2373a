import { ConfigError } from "../errors.js";
import type { AddCommand } from "./command.js";

/** Commands of LLaMA-Factory's that attune does not have, or not yet: each says what does its work here. They are in no list of the help. */
export const elsewhere: AddCommand = (program, { words: { elsewhere: words } }) => {
  for (const [name, answer] of Object.entries(words))
    program
      .command(name, { hidden: true })
      .argument("[args...]")
      .description(answer)
      .allowUnknownOption()
      .action(() => {
        throw new ConfigError(`${name}: ${answer}`);
      });
};
