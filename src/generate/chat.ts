import { basename, resolve } from "node:path";
import type { ComputeType } from "../engine/kernels.js";
import { fastestCompute, loadEngine } from "../engine/load.js";
import { ModelError } from "../errors.js";
import { resolveModel } from "../io/resolve.js";
import { asCausalLM } from "../models/causal-lm.js";
import type { LanguageModel } from "../models/language-model.js";
import { loadModel } from "../models/load.js";
import type { ChatTemplate, Message } from "../text/chat-template.js";
import { loadTokenizer, readChatTemplate } from "../text/load-tokenizer.js";
import { thoughtTags } from "../text/shield.js";
import { type ChatFormat, renderPrompt } from "../text/supervised.js";
import { chooseTemplate } from "../text/templates.js";
import { SharedBase } from "../tuners/shared-base.js";
import { Decoder, decodeAll, type Request } from "./decoder.js";
import { greedy, type SamplingOptions } from "./sampling.js";

/** Which model answers, and how it is loaded. */
export interface ChatOptions {
  /** A folder, a GGUF file, or a repository name of the hub. */
  readonly model: string;
  /** Folder of an adapter to put on top; or several by the names that `useAdapter` knows them by, of which the first is in use. */
  readonly adapter?: string | ReadonlyMap<string, string> | undefined;
  /** Name of a chat template; default: the adapter's, else the model's own. */
  readonly template?: string | undefined;
  /** false: the model answers without thoughts, where the chat template knows how (`enable_thinking`). Default: as the template does. */
  readonly enableThinking?: boolean | undefined;
  /** Default: the fastest that the machine has in hardware. */
  readonly compute?: ComputeType;
  /** Called with what the user should know. */
  readonly onNotice?: (message: string) => void;
  /** Called while a model is downloaded. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  readonly signal?: AbortSignal;
}

/** Without sampling options, the most likely token is taken each time. */
export interface ReplyOptions extends Partial<SamplingOptions> {
  /** Default 512. */
  readonly maxNewTokens?: number;
  readonly seed?: number;
  /** Ends the answer early. */
  readonly signal?: AbortSignal | undefined;
}

/** How an answer came to its end: of itself, at `maxNewTokens`, because the model takes no more tokens, or by the signal; and of how many tokens it is. */
export interface ReplyEnd {
  readonly finished: "stop" | "length" | "context" | "aborted";
  readonly tokens: number;
}

/** What a chat has loaded. */
export interface ChatFacts {
  /** The type in which most of the base's numbers are stored, such as `bf16` or `q8_0`. */
  readonly weights: string;
  /** How matrix products multiply. */
  readonly compute: ComputeType;
  /** Most tokens of a conversation with its answer, by the adapter in use. */
  readonly contextTokens: number;
  /** The methods of the adapters, by their names. */
  readonly methods: ReadonlyMap<string, string>;
}

/** Replies that are decoded at once; what is more waits. */
const slots = 16;

/**
 * A loaded model that answers conversations, rendered by the very function that rendered its training data. It may have several adapters, of any
 * methods, and change between them from answer to answer; each has the chat template that it was trained with. Several answers may be under way at
 * once. What the model has seen of a conversation is not computed again for its next turn.
 */
export class Chat {
  readonly #base: SharedBase;
  readonly #decoder: Decoder;
  readonly #formatOf: (adapter: string | null) => ChatFormat;
  readonly #methods: ReadonlyMap<string, string>;
  #adapter: string | null;

  private constructor(base: SharedBase, methods: ReadonlyMap<string, string>, formatOf: (adapter: string | null) => ChatFormat) {
    this.#base = base;
    this.#methods = methods;
    this.#decoder = new Decoder(this.#base, { slots });
    this.#formatOf = formatOf;
    this.#adapter = base.names[0] ?? null;
    formatOf(this.#adapter);
  }

  /** Loads a model, and adapters on top of it. Throws ModelError, ConfigError. */
  static async open(options: ChatOptions): Promise<Chat> {
    const { onNotice = () => {}, onProgress = () => {}, adapter = new Map(), template: name, enableThinking } = options;
    const signal = options.signal ?? new AbortController().signal;
    const files = await resolveModel(options.model, { onNotice, onProgress, signal });
    const tokenizer = await loadTokenizer(files);
    for (const message of tokenizer.notices) onNotice(message);
    const folders = typeof adapter === "string" ? new Map([[basename(resolve(adapter)), adapter]]) : adapter;
    const sources = new Map<string | null, string | undefined>();
    if (name === undefined) for (const [key, folder] of folders) sources.set(key, await readChatTemplate(folder));
    const formats = new Map<string | undefined, ChatFormat>();
    const formatOf = (key: string | null): ChatFormat => {
      const source = sources.get(key);
      const known = formats.get(source);
      if (known !== undefined) return known;
      const { template, notices } = chooseTemplate(tokenizer, { name, source, enableThinking });
      for (const message of notices) onNotice(message);
      const format = { tokenizer, template };
      formats.set(source, format);
      return format;
    };

    const kernels = loadEngine();
    const compute = options.compute ?? fastestCompute(kernels.info());
    const model = await loadModel({ kernels, compute }, files);
    const base = new SharedBase(model);
    try {
      for (const message of model.notices) onNotice(message);
      asCausalLM(model, "a chat");
      const methods = new Map<string, string>();
      for (const [key, folder] of folders) methods.set(key, (await base.load(key, folder)).tuner.name);
      return new Chat(base, methods, formatOf);
    } catch (error) {
      base.dispose();
      throw error;
    }
  }

  get adapters(): readonly string[] {
    return this.#base.names;
  }

  /** The adapter in use; null: the base. */
  get adapter(): string | null {
    return this.#adapter;
  }

  get facts(): ChatFacts {
    const { compute } = this.#base.device;
    const contextTokens = this.#base.with(this.#adapter, ({ shape, virtualTokens }) => shape.maxPositions - virtualTokens);
    return { weights: this.#base.with(null, storedAs), compute, contextTokens, methods: this.#methods };
  }

  /**
   * What the chat template in use knows of thoughts: whether it can keep them apart from an answer (`reasoning_content` of a message), and whether its
   * generation prompt opens them, so that an answer begins inside.
   */
  get thoughts(): { readonly areKnown: boolean; readonly areOpen: boolean } {
    const { template } = this.#formatOf(this.#adapter);
    return { areKnown: template.source.includes(thoughtTags[1]), areOpen: opensThoughts(template) };
  }

  /**
   * Puts an adapter to use, or the base (null), for the answers to come; those under way keep theirs. Throws ConfigError for a name that is not there,
   * or if the base has no chat template.
   */
  useAdapter(name: string | null): void {
    this.#base.hold(name).release();
    this.#formatOf(name);
    this.#adapter = name;
  }

  /**
   * The answer to a conversation, piece by piece as it is decoded, by the adapter that is in use now. Throws ConfigError if the conversation is too
   * long, ClosedError once the chat is closed. Returns how the answer ended.
   */
  reply(messages: readonly Message[], options: ReplyOptions = {}): AsyncGenerator<string, ReplyEnd> {
    return this.#decode(messages, options, this.#adapter);
  }

  async *#decode(messages: readonly Message[], options: ReplyOptions, adapter: string | null): AsyncGenerator<string, ReplyEnd> {
    const text = this.#formatOf(adapter).tokenizer.decodeStream();
    const request = this.#request(messages, options, adapter);
    let tokens = 0;
    let finished: ReplyEnd["finished"] = "aborted";
    for await (const { id, isStop, finished: reason } of this.#decoder.decode(request, options.signal)) {
      if (!isStop) tokens++;
      if (reason !== null) finished = reason === "length" && tokens < request.maxNewTokens ? "context" : reason;
      if (!isStop) yield text.push(id);
    }
    yield text.end();
    return { finished, tokens };
  }

  /** The answers to several conversations, decoded `slots` at a time. */
  async answerAll(
    conversations: readonly (readonly Message[])[],
    options: ReplyOptions & { slots?: number } = {},
  ): Promise<string[]> {
    const { tokenizer } = this.#formatOf(this.#adapter);
    const requests = conversations.map((messages) => this.#request(messages, options, this.#adapter));
    const answers = await decodeAll(this.#base, requests, options.slots ?? slots);
    return answers.map(({ ids }) => tokenizer.decode(ids));
  }

  /** Frees the model. Answers under way end with ClosedError, as does every later call. */
  close(): void {
    this.#decoder.dispose();
    this.#base.dispose();
  }

  #request(
    messages: readonly Message[],
    { maxNewTokens = 512, seed = 0, ...sampling }: ReplyOptions,
    adapter: string | null,
  ): Request {
    const format = this.#formatOf(adapter);
    return {
      prompt: renderPrompt(format, { messages }),
      adapter,
      maxNewTokens,
      stopIds: format.tokenizer.stopIds,
      sampling: {
        temperature: sampling.temperature ?? greedy.temperature,
        topP: sampling.topP ?? greedy.topP,
        topK: sampling.topK ?? greedy.topK,
        repetitionPenalty: sampling.repetitionPenalty ?? greedy.repetitionPenalty,
      },
      seed,
    };
  }
}

/** The type of most of a model's numbers. */
function storedAs(model: LanguageModel): string {
  const counts = new Map<string, number>();
  for (const [, { value }] of model.namedParameters())
    counts.set(value.dtype, (counts.get(value.dtype) ?? 0) + value.rows * value.columns);
  return [...counts].reduce((most, each) => (each[1] > most[1] ? each : most))[0];
}

function opensThoughts(template: ChatTemplate): boolean {
  try {
    const prompt = template.render({ messages: [{ role: "user", content: "Hello" }] }, { addGenerationPrompt: true });
    return prompt.trimEnd().endsWith(thoughtTags[0]);
  } catch (error) {
    if (error instanceof ModelError) return false; // it refuses such a chat
    throw error;
  }
}
