import { Rng } from "../core/rng.js";
import type { ComputeType } from "../engine/kernels.js";
import { fastestCompute, loadEngine } from "../engine/load.js";
import { resolveModel } from "../io/resolve.js";
import { asCausalLM, type CausalLM } from "../models/causal-lm.js";
import { loadModel } from "../models/load.js";
import type { Message } from "../text/chat-template.js";
import { loadTokenizer, readChatTemplate } from "../text/load-tokenizer.js";
import { type ChatFormat, renderPrompt } from "../text/supervised.js";
import { chooseTemplate } from "../text/templates.js";
import { tuners } from "../tuners/index.js";
import { applyAdapter } from "../tuners/tuned-files.js";
import { Decoder, decodeAll, type Request } from "./decoder.js";
import { greedy, type SamplingOptions } from "./sampling.js";

export interface ChatOptions {
  /** A folder, a GGUF file, or a repository name of the hub. */
  readonly model: string;
  /** Folder of an adapter to put on top. */
  readonly adapter?: string | undefined;
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

/** A loaded model that answers conversations, rendered by the very function that rendered its training data. */
export class Chat {
  readonly #model: CausalLM;
  readonly #format: ChatFormat;

  private constructor(model: CausalLM, format: ChatFormat) {
    this.#model = model;
    this.#format = format;
  }

  /** Loads a model, and an adapter on top of it. Throws ModelError, ConfigError. */
  static async open(options: ChatOptions): Promise<Chat> {
    const { onNotice = () => {}, onProgress = () => {}, adapter } = options;
    const signal = options.signal ?? new AbortController().signal;
    const files = await resolveModel(options.model, { onNotice, onProgress, signal });
    const tokenizer = await loadTokenizer(files);
    const source = adapter === undefined || options.template !== undefined ? undefined : await readChatTemplate(adapter);
    const { template, notices } = chooseTemplate(tokenizer, { name: options.template, source });
    for (const message of [...tokenizer.notices, ...notices]) onNotice(message);

    const kernels = loadEngine();
    const compute = options.compute ?? fastestCompute(kernels.info());
    const loaded = await loadModel({ kernels, compute }, files);
    try {
      const model = asCausalLM(loaded, "a chat");
      if (adapter !== undefined) await applyAdapter(adapter, model, tuners, new Rng(0));
      return new Chat(model, { tokenizer, template });
    } catch (error) {
      loaded.dispose();
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
    this.#model.dispose();
  }

  #request(messages: readonly Message[], { maxNewTokens = 512, seed = 0, ...sampling }: ReplyOptions): Request {
    return {
      prompt: renderPrompt(this.#format, messages),
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
