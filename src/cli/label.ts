import { existsSync } from "node:fs";
import { userInfo } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import type { CommandUnknownOpts } from "@commander-js/extra-typings";
import { ConfigError } from "../errors.js";
import type { DrawnPair, PairToDraw } from "../generate/draw-pairs.js";
import type { Share } from "../preference/agreement.js";
import type { LabelReport } from "../preference/label-report.js";
import type { LabelSession } from "../preference/label-session.js";
import type { LabelItem } from "../preference/label-store.js";
import type { Message } from "../text/chat-template.js";
import type { AddCommand, Context } from "./command.js";
import { watchInterrupts } from "./interrupts.js";
import type { Incoming } from "./label-view.js";
import { numberFor } from "./options.js";
import type { Parts } from "./parts.js";
import { whileDownloading } from "./progress-bar.js";
import { type ReplySettings, replyOptionsOf, replyRanges } from "./reply-settings.js";
import { escapeControls, styleFor } from "./terminal.js";

type Chat = Awaited<ReturnType<Parts["openChat"]>>;

/** Who is asked for answers. */
interface Answering {
  readonly model?: string | undefined;
  readonly a?: string | undefined;
  readonly b?: string | undefined;
  readonly template?: string | undefined;
}

/**
 * `attune label FILE`: which of two answers is better, by a person who does not know whose they are. `attune label report STORE`: what the labels say.
 */
export const label: AddCommand = (program, context) => {
  const { io, words } = context;
  const texts = words.label;
  const command = program
    .command("label")
    .summary(texts.summary)
    .description(texts.description)
    .usage("FILE [--a ADAPTER] [--b ADAPTER]")
    .helpCommand(false)
    .argument("<file>", texts.file)
    .option("-m, --model <model>", texts.model)
    .option("--a <adapter>", texts.a)
    .option("--b <adapter>", texts.b)
    .option("--template <name>", words.options.template)
    .option("-o, --out <store>", texts.out)
    .option("--rater <name>", texts.rater)
    .option("--repeats <share>", texts.repeats, numberFor("repeats", { from: 0, to: 1 }), 0.1)
    .option("--seed <number>", texts.seed, numberFor("seed", replyRanges.seed), 0)
    .option("-n, --max-new-tokens <count>", words.chat.maxNewTokens, numberFor("max-new-tokens", replyRanges.max_new_tokens), 256)
    .option("-t, --temperature <number>", texts.temperature, numberFor("temperature", replyRanges.temperature), 0.7)
    .option("--top-p <number>", words.chat.topP, numberFor("top-p", replyRanges.top_p), 1)
    .addHelpText("after", texts.examples)
    .action(async (file, { out = storeBeside(file), rater = userName(), repeats, seed, ...flags }) => {
      const { readItems } = await import("../preference/label-items.js");
      const { LabelSession } = await import("../preference/label-session.js");
      const { openLabelStore } = await import("../preference/label-store.js");
      const { labelWith } = await import("./label-view.js");
      const given = await readItems(file);
      const { temperature, topP, maxNewTokens } = flags;
      const reply: ReplySettings = {
        temperature,
        top_p: topP,
        top_k: 0,
        repetition_penalty: 1,
        max_new_tokens: maxNewTokens,
        seed,
      };
      const prepared = given.unanswered.length === 0 ? undefined : await preparePairs(given.unanswered, file, flags, reply);
      const tell = (message: string) => io.stderr.write(`${styleFor(io.stderr, io.env).dim(escapeControls(message))}\n`);
      for (const notice of given.notices) tell(notice);

      const store = await openLabelStore(out, { onNotice: tell });
      const { signal, stop } = watchInterrupts(() => {});
      try {
        const session = new LabelSession(store, { rater, seed, repeats });
        for (const item of given.items) session.add(item);
        const answers = prepared && (await drawInto(session, prepared, answersBeside(out), context, signal));
        try {
          await labelWith(session, answers ?? nothingMore, io, signal);
        } finally {
          await answers?.end();
        }
        const { given: labels, left, pointless } = session.progress;
        const open = left + (answers?.left ?? 0);
        io.stdout.write(`${escapeControls(texts.summaryOf(labels, rater, out))}${open > 0 ? texts.summaryLeft(open) : ""}\n`);
        if (pointless > 0) tell(texts.pointless(pointless));
        if (answers !== undefined && answers.cut > 0) tell(texts.cut(answers.cut, maxNewTokens));
        io.stdout.write(`${words.program.next}: attune label report ${escapeControls(out)}\n`);
        if (answers !== undefined && answers.faults.length > 0) tell(texts.unanswered(answers.faults.length, answers.faults[0]!));
        if (signal.aborted) context.setExitCode(130);
      } finally {
        stop();
        await store.close();
      }
    });
  addReport(command, context);
};

/** Some systems know no name for the user, in containers for instance. */
function userName(): string {
  try {
    return userInfo().username;
  } catch {
    return "me";
  }
}

/** The name of a data file with another ending: `prompts.jsonl` and `prompts.answers.jsonl` are labelled into `prompts.labels.jsonl`. */
function storeBeside(file: string): string {
  const stem = basename(file).replace(/(\.(answers|labels))?\.(jsonl|json|csv|tsv|txt|parquet)$/i, "");
  return join(dirname(file), `${stem}.labels.jsonl`);
}

function answersBeside(store: string): string {
  return join(dirname(store), `${basename(store).replace(/(\.labels)?\.jsonl$/i, "")}.answers.jsonl`);
}

const nothingMore: Incoming = { left: 0, wait: async () => {} };

/** What is to be drawn, and from what. Adapters are known as a and b, so that nothing on the screen tells which is which. */
interface Prepared {
  readonly model: string;
  readonly adapters: ReadonlyMap<string, string>;
  readonly template: string | undefined;
  readonly pairs: readonly PairToDraw[];
  readonly reply: ReplySettings;
  /** What notices of loading must not show. */
  readonly names: readonly string[];
}

async function preparePairs(
  prompts: readonly (readonly Message[])[],
  file: string,
  { model, a, b, template }: Answering,
  reply: ReplySettings,
): Promise<Prepared> {
  if (model === undefined && a === undefined && b === undefined)
    throw new ConfigError(
      `${file}: ${prompts.length} rows have no two answers to compare. Who is to answer? --model MODEL, or --a and --b with two adapters.`,
    );
  const isOne = (a ?? "base") === (b ?? a ?? "base");
  if (isOne && reply.temperature === 0)
    throw new ConfigError("--temperature 0: one model would answer twice the same; draw with a temperature, such as 0.7");
  const folders = new Map(
    Object.entries({ a, b: b ?? a }).flatMap(([name, folder]) => (isBase(folder) ? [] : [[name, folder!]])),
  );
  const { adapterHash } = await import("../preference/label-items.js");
  const hashOf = async (name: string) => (folders.has(name) ? await adapterHash(folders.get(name)!) : null);
  const models = { a: await hashOf("a"), b: await hashOf("b") };
  const base = model ?? (await baseOf([...folders.values()]));
  const { seed, max_new_tokens, ...sampling } = reply;
  const adapters = isOne && folders.has("a") ? new Map([["a", folders.get("a")!]]) : folders;
  const nameOf = (name: "a" | "b") => (!folders.has(name) ? null : isOne ? "a" : name);
  return {
    model: base,
    adapters,
    template,
    reply,
    names: [base, ...folders.values()].flatMap((path) => [path, resolve(path), basename(resolve(path))]),
    pairs: prompts.map((prompt, i) => ({
      prompt,
      adapters: { a: nameOf("a"), b: nameOf("b") },
      models,
      sampling: { ...sampling, max_new_tokens },
      seed: { a: seed + 2 * i, b: seed + 2 * i + 1 },
    })),
  };
}

const isBase = (adapter: string | undefined) => adapter === undefined || (adapter === "base" && !existsSync("base"));

/** The base that adapters name. Throws ConfigError where they name none, or different ones. */
async function baseOf(folders: readonly string[]): Promise<string> {
  const { readAdapterConfig } = await import("../io/adapters/adapter-folder.js");
  const bases: string[] = [];
  for (const folder of folders) {
    const { base_model_name_or_path: base } = await readAdapterConfig(folder);
    if (typeof base !== "string" || base === "") throw new ConfigError(`${folder}: names no base model: give --model MODEL`);
    bases.push(base);
  }
  const [first, ...others] = new Set(bases);
  if (first === undefined) throw new ConfigError("--a base: which model? Give --model MODEL");
  if (others.length > 0)
    throw new ConfigError(
      `the adapters were trained on ${first} and on ${others[0]}: give --model MODEL with the one that is to answer`,
    );
  return first;
}

/** Answers that are drawn while a rater labels. */
class Drawn implements Incoming {
  left: number;
  cut = 0;
  /** Of prompts that cannot be answered. */
  readonly faults: string[] = [];
  #error: unknown;
  #wake = () => {};
  readonly #abort = new AbortController();
  #work: Promise<void> = Promise.resolve();

  constructor(left: number) {
    this.left = left;
  }

  start(work: (signal: AbortSignal) => Promise<void>): void {
    this.#work = work(this.#abort.signal).catch((error) => {
      this.#error = error;
      this.#wake();
    });
  }

  came(pair: DrawnPair): void {
    this.left--;
    if ("item" in pair) this.cut += pair.cut;
    else this.faults.push(pair.fault);
    this.#wake();
  }

  async wait(): Promise<void> {
    if (this.#error !== undefined) throw this.#error;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    if (this.#error !== undefined) throw this.#error;
  }

  /** Stops drawing and gives the model back. What was drawn is stored. Rejects where it could not be drawn. */
  async end(): Promise<void> {
    this.#abort.abort();
    await this.#work;
    if (this.#error !== undefined) throw this.#error;
  }
}

/** A message that does not say who answers. */
function withoutNames(message: string, names: readonly string[]): string {
  return names.reduce((text, name) => (name.length > 1 ? text.replaceAll(name, "…") : text), message);
}

/** Adds the answers that are there already to a session, and draws the others into the file beside the store, and into the session. */
async function drawInto(
  session: LabelSession,
  { model, adapters, template, pairs, reply, names }: Prepared,
  path: string,
  { io, parts }: Context,
  signal: AbortSignal,
): Promise<Drawn> {
  const { drawingKey, openItemFile } = await import("../preference/label-items.js");
  const tell = (message: string) =>
    io.stderr.write(`${styleFor(io.stderr, io.env).dim(escapeControls(withoutNames(message, names)))}\n`);
  const file = await openItemFile(path, { onNotice: tell });
  let chat: Chat | undefined;
  try {
    const there = new Map<string, LabelItem>(file.rows.map((item) => [drawingKey(item.prompt, item), item]));
    const missing: PairToDraw[] = [];
    for (const pair of pairs) {
      const item = there.get(drawingKey(pair.prompt, pair));
      if (item === undefined) missing.push(pair);
      else session.add(item);
    }
    const drawn = new Drawn(missing.length);
    if (missing.length === 0) {
      await file.close();
      return drawn;
    }
    const opened = await whileDownloading(model, io, (watch) =>
      parts.openChat({ model, adapter: adapters, template, ...watch, onNotice: tell, signal }),
    );
    chat = opened;
    const { drawPairs } = await import("../generate/draw-pairs.js");
    drawn.start(async (ended) => {
      try {
        const { seed: _, ...options } = replyOptionsOf(reply);
        for await (const pair of drawPairs(opened, missing, { reply: options, signal: ended })) {
          if ("item" in pair) {
            await file.append(pair.item);
            session.add(pair.item);
          }
          drawn.came(pair);
        }
      } finally {
        opened.close();
        await file.close();
      }
    });
    return drawn;
  } catch (error) {
    chat?.close();
    await file.close();
    throw error;
  }
}

function addReport(command: CommandUnknownOpts, { io: { stdout, stderr, env }, words: { label: group } }: Context): void {
  const words = group.report;
  command
    .command("report")
    .summary(words.summary)
    .description(words.description)
    .usage("STORE... [--adapter [NAME=]FOLDER ...]")
    .argument("<stores...>", words.store)
    .option("-a, --adapter <folder>", words.adapter, (folder: string, before: readonly string[] = []) => [...before, folder])
    .action(async (stores, { adapter: folders = [] }) => {
      const { readLabels } = await import("../preference/label-store.js");
      const { adapterHash } = await import("../preference/label-items.js");
      const { labelReport } = await import("../preference/label-report.js");
      const names = new Map<string, string>();
      for (const flag of folders) {
        const [, name, folder = flag] = /^([\w.-]+)=(.+)$/s.exec(flag) ?? [];
        names.set(await adapterHash(folder), name ?? basename(resolve(folder)));
      }
      const rows = [];
      for (const path of stores) {
        if (!existsSync(path)) throw new ConfigError(`${path}: there is no such label store`);
        const read = await readLabels(path);
        if (read.tornBytes > 0) stderr.write(`${escapeControls(words.torn(path, read.tornBytes))}\n`);
        rows.push(...read.rows);
      }
      const style = styleFor(stdout, env);
      for (const line of linesOf(labelReport(rows), words, (model) => names.get(model) ?? model)) {
        const text = escapeControls(line);
        stdout.write(`${/^[ ]|^$/.test(line) ? text : style.bold(text)}\n`);
      }
    });
}

type ReportWords = Context["words"]["label"]["report"];

function linesOf(report: LabelReport, words: ReportWords, nameOf: (model: string) => string): string[] {
  if (report.labels === 0) return [words.none];
  const share = ({ share: value, low, high, of }: Share) =>
    of === 0 ? words.noCase : words.share(percent(value), percent(low), percent(high), of);
  const coefficient = (value: number) => (Number.isNaN(value) ? words.undefined : value.toFixed(3));
  const { counts, agreement, trains } = report;
  const lines = [
    words.labels(report.labels, report.items),
    `  ${words.counts(counts.a + counts.b, counts.tie, counts.both_bad)}`,
    ...report.raters.flatMap((rater) => [
      words.rater(rater.rater, rater.labels, (rater.medianMs / 1000).toFixed(1)),
      words.left(share(rater.left)),
      words.consistency(share(rater.consistency)),
    ]),
    "",
  ];
  if (agreement === undefined) lines.push(words.oneRater);
  else {
    const { fleiss, cohen } = agreement;
    lines.push(words.agreement(agreement.items), words.raw(share(agreement.raw)));
    lines.push(words.rawWithoutTies(share(agreement.rawWithoutTies)));
    if (cohen !== undefined) lines.push(words.cohen(coefficient(cohen)));
    lines.push(words.fleiss(coefficient(fleiss.kappa), fleiss.items, fleiss.ratings));
    lines.push(words.krippendorff(coefficient(agreement.krippendorff)));
  }
  for (const { plain, atEqualLength } of report.rankings) {
    lines.push("", words.ranking);
    for (const { rank, model, rating, low, high, wins, comparisons } of plain.ratings)
      lines.push(
        words.rated(rank, nameOf(model), whole(rating), whole(low), whole(high), words.wins(String(wins), String(comparisons))),
      );
    for (const { model, rating, low, high } of atEqualLength?.ratings ?? [])
      lines.push(words.equalLength(nameOf(model), whole(rating), whole(low), whole(high)));
    if (plain.isShrunk) lines.push(words.shrunk);
  }
  lines.push("", words.longer(share(report.longerWins)), words.trains, words.pairs(trains.pairs));
  lines.push(words.single(trains.good, trains.bad), words.unused(trains.ties, trains.repeats));
  if (trains.conflicts > 0) lines.push(words.conflicts(trains.conflicts));
  if (trains.pairs < fewPairs) lines.push(words.few);
  return lines;
}

const fewPairs = 2000;

const percent = (share: number) => (100 * share).toFixed(0);
const whole = (value: number) => value.toFixed(0);
