import { basename, resolve } from "node:path";
import type { ComputeType } from "../engine/kernels.js";
import { fastestCompute, loadEngine } from "../engine/load.js";
import { resolveModel } from "../io/resolve.js";
import { asCausalLM } from "../models/causal-lm.js";
import { loadModel } from "../models/load.js";
import type { Message } from "../text/chat-template.js";
import { loadTokenizer, readChatTemplate } from "../text/load-tokenizer.js";
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
  #adapter: string | null;

  private constructor(base: SharedBase, formatOf: (adapter: string | null) => ChatFormat) {
    this.#base = base;
    this.#decoder = new Decoder(this.#base, { slots });
    this.#formatOf = formatOf;
    this.#adapter = base.names[0] ?? null;
    formatOf(this.#adapter);
  }

  /** Loads a model, and adapters on top of it. Throws ModelError, ConfigError. */
  static async open(options: ChatOptions): Promise<Chat> {
    const { onNotice = () => {}, onProgress = () => {}, adapter = new Map(), template: name } = options;
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
      const { template, notices } = chooseTemplate(tokenizer, { name, source });
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
      for (const [key, folder] of folders) await base.load(key, folder);
      return new Chat(base, formatOf);
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
   * long, ClosedError once the chat is closed.
   */
  reply(messages: readonly Message[], options: ReplyOptions = {}): AsyncGenerator<string> {
    return this.#decode(messages, options, this.#adapter);
  }

  async *#decode(messages: readonly Message[], options: ReplyOptions, adapter: string | null): AsyncGenerator<string> {
    const text = this.#formatOf(adapter).tokenizer.decodeStream();
    for await (const { id, isStop } of this.#decoder.decode(this.#request(messages, options, adapter), options.signal))
      if (!isStop) yield text.push(id);
    yield text.end();
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
