import { basename, resolve } from "node:path";
import type { ComputeType } from "../engine/kernels.js";
import { fastestCompute, loadEngine } from "../engine/load.js";
import { resolveModel } from "../io/resolve.js";
import { asCausalLM, type CausalLM } from "../models/causal-lm.js";
import { loadModel } from "../models/load.js";
import type { Message } from "../text/chat-template.js";
import { loadTokenizer, readChatTemplate } from "../text/load-tokenizer.js";
import { type ChatFormat, renderPrompt } from "../text/supervised.js";
import { chooseTemplate } from "../text/templates.js";
import { AdapterSet } from "../tuners/adapter-set.js";
import { Decoder, decodeAll, type Request } from "./decoder.js";
import { greedy, type SamplingOptions } from "./sampling.js";

export interface ChatOptions {
  /** A folder, a GGUF file, or a repository name of the hub. */
  readonly model: string;
  /** Folder of an adapter to put on top; or several by the names that `useAdapter` knows them by, of which the first is in use. */
  readonly adapter?: string | ReadonlyMap<string, string> | undefined;
  /** Name of a chat template; default: the adapter's, else the model's own. */
  readonly template?: string | undefined;
  /** Default: the fastest that the machine has in hardware. */
  readonly compute?: ComputeType;
  readonly onNotice?: (message: string) => void;
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

/**
 * A loaded model that answers conversations, rendered by the very function that rendered its training data. It may have several adapters, of any
 * methods, and change between them from answer to answer; each has the chat template that it was trained with.
 */
export class Chat {
  readonly #model: CausalLM;
  readonly #adapters: AdapterSet;
  readonly #formatOf: (adapter: string | null) => ChatFormat;
  #format: ChatFormat;

  private constructor(model: CausalLM, adapters: AdapterSet, formatOf: (adapter: string | null) => ChatFormat) {
    this.#model = model;
    this.#adapters = adapters;
    this.#formatOf = formatOf;
    this.#format = formatOf(adapters.current);
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
    const loaded = await loadModel({ kernels, compute }, files);
    try {
      for (const message of loaded.notices) onNotice(message);
      const model = asCausalLM(loaded, "a chat");
      const adapters = new AdapterSet(model);
      try {
        for (const [key, folder] of folders) await adapters.add(key, folder);
        adapters.use(adapters.names[0] ?? null);
        return new Chat(model, adapters, formatOf);
      } catch (error) {
        adapters.dispose();
        throw error;
      }
    } catch (error) {
      loaded.dispose();
      throw error;
    }
  }

  get adapters(): readonly string[] {
    return this.#adapters.names;
  }

  /** The adapter in use; null: the base. */
  get adapter(): string | null {
    return this.#adapters.current;
  }

  /** Puts an adapter to use, or the base (null), for the answers to come. Throws ConfigError for a name that is not there. */
  useAdapter(name: string | null): void {
    const before = this.adapter;
    this.#adapters.use(name);
    try {
      this.#format = this.#formatOf(name);
    } catch (error) {
      this.#adapters.use(before); // the base may have no chat template
      throw error;
    }
  }

  /** The answer to a conversation, piece by piece as it is decoded. Throws ConfigError if the conversation is too long. */
  async *reply(messages: readonly Message[], options: ReplyOptions = {}): AsyncGenerator<string> {
    const request = this.#request(messages, options);
    const { maxPositions } = this.#model.shape;
    const capacity = Math.min(request.prompt.length + request.maxNewTokens, maxPositions - this.#model.virtualTokens);
    const decoder = new Decoder(this.#model, { slots: 1, capacity });
    const text = this.#format.tokenizer.decodeStream();
    try {
      decoder.add(request);
      while (!decoder.isIdle && options.signal?.aborted !== true)
        for (const { id } of await decoder.step()) if (id !== null) yield text.push(id);
      yield text.end();
    } finally {
      decoder.dispose();
    }
  }

  /** The answers to several conversations, decoded `slots` at a time. */
  async answerAll(
    conversations: readonly (readonly Message[])[],
    options: ReplyOptions & { slots?: number } = {},
  ): Promise<string[]> {
    const requests = conversations.map((messages) => this.#request(messages, options));
    const answers = await decodeAll(this.#model, requests, options.slots ?? 16);
    return answers.map(({ ids }) => this.#format.tokenizer.decode(ids));
  }

  close(): void {
    this.#adapters.dispose();
    this.#model.dispose();
  }

  #request(messages: readonly Message[], { maxNewTokens = 512, seed = 0, ...sampling }: ReplyOptions): Request {
    return {
      prompt: renderPrompt(this.#format, { messages }),
      maxNewTokens,
      stopIds: this.#format.tokenizer.stopIds,
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
