import { basename, resolve } from "node:path";
import { ConfigError } from "../errors.js";
import type { InferenceRecipe } from "../recipe/inference.js";
import type { AddCommand } from "./command.js";
import { numberFor, required } from "./options.js";
import { whileDownloading } from "./progress-bar.js";
import { checkStage, type RecipeUse, readUse, readUseArgs, systemOf } from "./recipe-use.js";
import { defaultReply, llamaFactoryReply, type ReplySettings, replyRanges } from "./reply-settings.js";
import { styleFor } from "./terminal.js";

/** `attune chat`: a conversation on a terminal, or one turn for every line of the input. */
export const chat: AddCommand = (program, { io, words: { chat: texts, options }, parts }) => {
  program
    .command("chat")
    .summary(texts.summary)
    .description(texts.description)
    .usage("[RECIPE | FOLDER] [--model MODEL] [--adapter [NAME=]FOLDER ...] [key=value ...]")
    .argument("[args...]")
    .option("-m, --model <model>", options.model)
    .option("-a, --adapter <folder>", texts.adapter, (folder: string, before: readonly string[] = []) => [...before, folder])
    .option("-s, --system <text>", texts.system)
    .option("--template <name>", options.template)
    .option("-n, --max-new-tokens <count>", texts.maxNewTokens, numberFor("max-new-tokens", replyRanges.max_new_tokens))
    .option("-t, --temperature <number>", texts.temperature, numberFor("temperature", replyRanges.temperature))
    .option("--top-p <number>", texts.topP, numberFor("top-p", replyRanges.top_p))
    .addHelpText("after", texts.examples)
    .action(async (words, { adapter: adapters = [], ...flags }) => {
      // One adapter and nothing else: the base is the one that it names.
      const isAlone = words.length === 0 && flags.model === undefined && adapters.length === 1 && !named.test(adapters[0]!);
      const [args, folders] = isAlone ? [adapters, []] : [words, adapters];
      if (args.length === 0) required("model", flags.model);
      const { parseInference } = await import("../recipe/inference.js");
      const { everyMethod } = await import("../backends/index.js");
      const use = await readUse(await readUseArgs(args), [
        { flag: "--model", key: "model_name_or_path", value: flags.model },
        { flag: "--adapter", key: "adapter_name_or_path", value: folders.length > 0 ? folders.join(" ") : undefined },
        { flag: "--system", key: "default_system", value: flags.system },
        { flag: "--template", key: "template", value: flags.template },
        { flag: "--max-new-tokens", key: "max_new_tokens", value: flags.maxNewTokens },
        { flag: "--temperature", key: "temperature", value: flags.temperature },
        { flag: "--top-p", key: "top_p", value: flags.topP },
      ]);
      await checkStage(use, "chat");
      const { recipe, notices } = parseInference(use.source, use.overrides, everyMethod);
      const { reply, notice } = replyOf(recipe, use);
      const style = styleFor(io.stderr, io.env);
      // A recipe of training is full of what only training reads.
      for (const each of use.result === undefined ? [...notices, ...notice] : []) io.stderr.write(`${style.dim(each)}\n`);

      const model = use.result?.model ?? recipe.model_name_or_path;
      const ofRecipe = use.result === undefined ? (recipe.adapter_name_or_path ?? undefined) : use.result.adapter;
      const adapter = folders.length > 0 ? adaptersOf(folders) : ofRecipe;
      const template = use.result === undefined ? (recipe.template ?? undefined) : (use.after.template as string | undefined);
      const system =
        flags.system ??
        (use.result && (await systemOf(use.settings, parts.systemPromptOf))) ??
        recipe.default_system ??
        undefined;
      const opened = await whileDownloading(model, io, (watch) =>
        parts.openChat({ model, adapter, template, enableThinking: recipe.enable_thinking ?? undefined, ...watch }),
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

/**
 * How answers are drawn. A recipe that samples, or names how, gets LLaMA-Factory's numbers for what it leaves open; one that says nothing of it gets
 * the likeliest tokens.
 */
function replyOf(recipe: InferenceRecipe, { source, inFile }: RecipeUse): { reply: ReplySettings; notice: string[] } {
  const samples = recipe.do_sample === true || ["temperature", "top_p", "top_k"].some((key) => (inFile[key] ?? null) !== null);
  const given = Object.entries(recipe).filter(([key, value]) => Object.hasOwn(replyRanges, key) && value !== null);
  const reply = { ...(samples ? llamaFactoryReply : defaultReply), ...Object.fromEntries(given) };
  const isSilent = source.text !== "" && !samples && recipe.do_sample === null && recipe.temperature === null;
  const { temperature, top_p, top_k } = llamaFactoryReply;
  return {
    reply: recipe.do_sample === false ? { ...reply, temperature: 0 } : reply,
    notice: isSilent
      ? [
          `answers are the likeliest tokens; do_sample=true draws them as LLaMA-Factory does (temperature ${temperature}, top_p ${top_p}, top_k ${top_k})`,
        ]
      : [],
  };
}
