import { basename, resolve } from "node:path";
import { ConfigError } from "../errors.js";
import type { AddCommand } from "./command.js";
import { numberFor, required } from "./options.js";
import { whileDownloading } from "./progress-bar.js";

/** `attune chat`: a conversation on a terminal, or one turn for every line of the input. */
export const chat: AddCommand = (program, { io, parts }) => {
  program
    .command("chat")
    .summary("talk to a model, with or without an adapter")
    .description("Talk to a model. Without a terminal, each line of the input is one turn.")
    .usage("--model MODEL [--adapter [NAME=]FOLDER ...]")
    .option("-m, --model <model>", "a folder, a GGUF file, or a name on the hub")
    .option(
      "-a, --adapter <folder>",
      "the output_dir of a run, or an adapter of PEFT or AdapterHub; NAME=FOLDER, more than once, to change between them",
      (folder: string, before: readonly string[] = []) => [...before, folder],
    )
    .option("-s, --system <text>", "a system message")
    .option("--template <name>", "another chat template than the adapter's or the model's own")
    .option("-n, --max-new-tokens <count>", "longest answer", numberFor("max-new-tokens", { from: 1, whole: true }), 512)
    .option("-t, --temperature <number>", "0: always the likeliest token", numberFor("temperature", { from: 0 }), 0)
    .option(
      "--top-p <number>",
      "sample from the likeliest tokens of this total probability",
      numberFor("top-p", { from: 0, to: 1 }),
      1,
    )
    .addHelpText(
      "after",
      `
In the chat: /reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer.
With adapters: /adapter NAME changes to another, /base to the model without one, /adapters lists them.

Examples:
  attune chat --model SmolLM2-135M-Instruct --adapter runs/orders
  attune chat --model SmolLM2-135M-Instruct --adapter a=runs/orders --adapter b=runs/poems
  echo "two teas to table 5" | attune chat --model model.gguf`,
    )
    .action(async ({ model: name, adapter = [], system, template, ...replyOptions }) => {
      const model = required("model", name);
      const opened = await whileDownloading(model, io, (watch) =>
        parts.openChat({ model, adapter: adaptersOf(adapter), template, ...watch }),
      );
      try {
        const { converse } = await import("./conversation.js");
        await converse(opened, { ...replyOptions, system }, io);
      } finally {
        opened.close();
      }
    });
};

/** The adapters of the command line, folders by name. Each is written NAME=FOLDER, or FOLDER alone, which is then its name. */
function adaptersOf(flags: readonly string[]): string | ReadonlyMap<string, string> | undefined {
  if (flags.length <= 1 && !flags.some((flag) => named.test(flag))) return flags[0];
  const folders = new Map<string, string>();
  for (const flag of flags) {
    const [, name = basename(resolve(flag)), folder = flag] = named.exec(flag) ?? [];
    if (folders.has(name))
      throw new ConfigError(`--adapter: two are called ${JSON.stringify(name)}; give them names: --adapter NAME=FOLDER`);
    folders.set(name, folder);
  }
  return folders;
}

const named = /^([\w.-]+)=(.+)$/s;
