import { basename, resolve } from "node:path";
import { ConfigError } from "../errors.js";
import type { AddCommand } from "./command.js";
import { numberFor, required } from "./options.js";
import { whileDownloading } from "./progress-bar.js";
import { defaultReply, type ReplySettings, replyRanges } from "./reply-settings.js";

/** `attune chat`: a conversation on a terminal, or one turn for every line of the input. */
export const chat: AddCommand = (program, { io, words: { chat: words, options }, parts }) => {
  program
    .command("chat")
    .summary(words.summary)
    .description(words.description)
    .usage("--model MODEL [--adapter [NAME=]FOLDER ...]")
    .option("-m, --model <model>", options.model)
    .option("-a, --adapter <folder>", words.adapter, (folder: string, before: readonly string[] = []) => [...before, folder])
    .option("-s, --system <text>", words.system)
    .option("--template <name>", options.template)
    .option("-n, --max-new-tokens <count>", words.maxNewTokens, numberFor("max-new-tokens", replyRanges.max_new_tokens))
    .option("-t, --temperature <number>", words.temperature, numberFor("temperature", replyRanges.temperature))
    .option("--top-p <number>", words.topP, numberFor("top-p", replyRanges.top_p))
    .addHelpText("after", words.examples)
    .action(async ({ model: name, adapter = [], system, template, maxNewTokens, temperature, topP }) => {
      const model = required("model", name);
      const reply: ReplySettings = {
        ...defaultReply,
        ...(maxNewTokens !== undefined && { max_new_tokens: maxNewTokens }),
        ...(temperature !== undefined && { temperature }),
        ...(topP !== undefined && { top_p: topP }),
      };
      const opened = await whileDownloading(model, io, (watch) =>
        parts.openChat({ model, adapter: adaptersOf(adapter), template, ...watch }),
      );
      try {
        const { converse } = await import("./conversation.js");
        await converse(opened, { model, system, reply }, io);
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
