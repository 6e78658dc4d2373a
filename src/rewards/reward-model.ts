import { existsSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import type { Device } from "../core/device.js";
import { Rng } from "../core/rng.js";
import { scope } from "../core/tensor.js";
import { ConfigError, ModelError, RewardError } from "../errors.js";
import { adapterConfigName } from "../io/adapters/adapter-folder.js";
import { openValueHead } from "../io/adapters/value-head.js";
import { namesIn } from "../io/disk.js";
import type { ModelFiles } from "../io/model-files.js";
import { resolveModel } from "../io/resolve.js";
import { type Family, packFamilies } from "../models/branches.js";
import { classesOf } from "../models/classes.js";
import { loadModel, placeHead, setValues } from "../models/load.js";
import { requireDecoder, scoresOf } from "../models/reward-head.js";
import { loadTokenizer, loadTokenizerFolder } from "../text/load-tokenizer.js";
import type { Tokenizer } from "../text/tokenizer/tokenizer.js";
import { quantizedBase } from "../tuners/quantized-base.js";
import { SharedBase } from "../tuners/shared-base.js";
import { api } from "./endpoint.js";
import { defineKind } from "./kind.js";
import type { RewardSample } from "./reward.js";
import type { RewardItem } from "./rewards.js";

/**
 * LLaMA-Factory's keys of the reward model (hparams/finetuning_args.py), for stages that learn from rewards. Its `reward_model_type` is `lora` where
 * nothing is said; here the folder tells.
 */
export const rewardModelKeys = {
  reward_model: z
    .string()
    .min(1)
    .nullable()
    .default(null)
    .describe(
      "the reward model: an adapter of stage rm, which is put on the model that trains; a model with a head of one output (a folder, a name on the hub); or, with reward_model_type: api, the address of a service",
    ),
  reward_model_type: z
    .enum(["lora", "full", "api"])
    .nullable()
    .default(null)
    .describe(
      "what reward_model is: lora: an adapter on the same base (of any method); full: a model of its own; not set: what its folder holds",
    ),
  reward_model_adapters: z
    .string()
    .min(1)
    .nullable()
    .default(null)
    .describe("an adapter on a reward_model of its own, which then may be any base: the adapter brings the head"),
  reward_model_quantization_bit: z
    .union([z.literal(4), z.literal(8)])
    .nullable()
    .default(null)
    .describe("keep a reward_model of its own in 4 bits (nf4) or 8 bits; not set: as it is stored"),
  ignore_reward_gate: z
    .boolean()
    .default(false)
    .describe(
      "train on a reward model that stage rm has not shown to be better, with confidence, than judging by length or formatting (attune's own)",
    ),
};

export type RewardModelSettings = { readonly [Key in keyof typeof rewardModelKeys]: z.output<(typeof rewardModelKeys)[Key]> };

/** What these keys ask for, as an item of `rewards`; null where no reward model is named. Throws ConfigError for what is no address. */
export function rewardModelItem(settings: Partial<RewardModelSettings>): RewardItem | null {
  const { reward_model: model = null, reward_model_type: kind = null } = settings;
  const { reward_model_adapters: adapter = null, reward_model_quantization_bit: bits = null } = settings;
  if (model === null) return null;
  const common = { name: "reward_model", weight: 1 };
  if (kind !== "api") return { type: rewardModel.type, ...common, model, kind, adapter, quantization_bit: bits };
  const service = api.config.safeParse({ url: model });
  if (!service.success) throw new ConfigError(`reward_model: ${service.error.issues[0]!.message} (reward_model_type: api)`);
  return { type: api.type, ...common, ...service.data };
}

/** The folder of a reward model, whose gate speaks for it; null for any other reward. */
export function gateFolderOf({ type, model, adapter }: RewardItem): string | null {
  return type === rewardModel.type ? String(adapter ?? model) : null;
}

/** Whether a reward is an adapter that will sit on the base of the model that trains, which then has to stay as it was. */
export function sitsOnBase({ type, model }: RewardItem): boolean {
  return type === rewardModel.type && existsSync(join(String(model), adapterConfigName));
}

/**
 * A reward model that stage rm, LLaMA-Factory or TRL has trained: an adapter on the policy's own base, or a model of its own with the same vocabulary. Prompts
 * are computed once for all their answers. An answer that was cut is scored at its last token.
 */
export const rewardModel = defineKind({
  type: "reward_model",
  summary:
    "what a reward model says: an adapter of stage rm on the model that trains, or a model of its own with the same vocabulary",
  config: z.strictObject({
    model: z.string().min(1).describe("as `reward_model`"),
    kind: z.enum(["lora", "full"]).nullable().default(null).describe("as `reward_model_type`"),
    adapter: z.string().min(1).nullable().default(null).describe("as `reward_model_adapters`"),
    quantization_bit: z
      .union([z.literal(4), z.literal(8)])
      .nullable()
      .default(null)
      .describe("as `reward_model_quantization_bit`"),
  }),
  async open({ model, kind, adapter, quantization_bit }, { name, tokenizer }) {
    const fail = (what: string) => new ConfigError(`rewards: ${name}: ${what}`);
    const isAdapter = (await namesIn(model).catch((): string[] => [])).includes(adapterConfigName);
    if (kind === "lora" && !isAdapter)
      throw fail(`${model} holds no adapter (${adapterConfigName}); a model of its own is reward_model_type: full`);
    if (kind === "full" && isAdapter)
      throw fail(
        `${model} holds an adapter: reward_model_type: lora, or name its base as reward_model and itself as reward_model_adapters`,
      );
    if (isAdapter && (adapter ?? quantization_bit) !== null)
      throw fail(
        `${model} is an adapter on the model that trains: reward_model_adapters and reward_model_quantization_bit are for a model of its own`,
      );

    const files = isAdapter ? null : await resolveModel(model);
    const theirs = files === null ? await tokenizerIn(model) : await loadTokenizer(files);
    const stranger = theirs === null ? undefined : tokenizer.firstDifference(theirs);
    if (stranger !== undefined)
      throw fail(
        `${model} is a reward model of another tokenizer: token ${stranger} is ${spelled(tokenizer, stranger)} for the model that trains, and ${spelled(theirs!, stranger)} there. Both need one vocabulary`,
      );

    const sitting = new WeakMap<SharedBase, Promise<Scorer>>();
    const scorerBeside = async (base: SharedBase): Promise<Scorer> => {
      if (files === null) {
        requireBase(base, model, fail);
        let sits = `reward:${name}`;
        while (base.names.includes(sits)) sits += "'";
        await base.load(sits, model, { valueHead: true });
        return { base, name: sits };
      }
      const scorer = await openScorer(base.device, files, { adapter, quantizationBit: quantization_bit });
      base.keepWith(scorer.base);
      return scorer;
    };
    return async (samples, { base, signal }) => {
      const opening = sitting.get(base) ?? scorerBeside(base);
      sitting.set(base, opening);
      return scoreSamples(await opening, samples, signal, name);
    };
  },
});

/** Throws where the weights of the base train in their places: the adapter would sit on others. */
function requireBase(base: SharedBase, model: string, fail: (what: string) => Error): void {
  try {
    base.with(null, () => {});
  } catch (cause) {
    if (!(cause instanceof ConfigError)) throw cause;
    throw fail(`${model} is an adapter on the base of the model that trains, and that base is gone: ${cause.message}`);
  }
}

const spelled = (tokenizer: Tokenizer, id: number) => JSON.stringify(tokenizer.decode([id], { special: true }));

async function tokenizerIn(folder: string): Promise<Tokenizer | null> {
  return (await namesIn(folder)).includes("tokenizer.json") ? await loadTokenizerFolder(folder) : null;
}

/** Who scores: what sits on a base under a name, or the base itself. */
export interface Scorer {
  readonly base: SharedBase;
  readonly name: string | null;
}

export interface ScorerOptions {
  /** The folder of an adapter that makes the model a reward model. */
  readonly adapter: string | null;
  readonly quantizationBit?: 4 | 8 | null;
  readonly notify?: (message: string) => void;
}

/**
 * Loads a reward model of its own: a sequence classifier of one output; a model with LLaMA-Factory's value_head.safetensors beside it; or any base with an
 * adapter that brings the head, in its own files or beside them. Throws ModelError for what is none, and as `loadModel` and `SharedBase.load` do.
 */
export async function openScorer(
  device: Device,
  files: ModelFiles,
  { adapter, quantizationBit = null, notify = () => {} }: ScorerOptions,
): Promise<Scorer> {
  const own = classesOf(files.config);
  if (own !== null && own.length !== 1)
    throw new ModelError(`${files.path}: is a classifier with ${own.length} outputs, and a reward model has one`);
  const quantization = { quantization_bit: quantizationBit, quantization_type: "nf4", double_quantization: true } as const;
  const model = await loadModel(device, files, undefined, (unread) => quantizedBase(unread, quantization, notify));
  const base = new SharedBase(model);
  try {
    for (const message of model.notices) notify(message);
    requireDecoder(model, "a reward model");
    if (adapter !== null) await base.load("default", adapter, { valueHead: true });
    else if (own === null) {
      const head = await openValueHead(files.path).catch((error: unknown) => {
        if (files.format === "gguf") return null;
        throw error;
      });
      if (head === null)
        throw new ModelError(`${files.path}: is no reward model: it has no head of one output. Train one with stage: rm`);
      placeHead(model, 1, new Rng(0), head.tensors.has("score.bias"));
      for (const [name, entry] of head.tensors) {
        const { weight, bias } = model.head!;
        const { value, shape } = name === "score.weight" ? weight : bias!;
        if (entry.shape.join() !== shape.join())
          throw new ModelError(
            `${entry.file}: ${name} is [${entry.shape}], and the model needs [${shape}]: it belongs to another model`,
          );
        setValues(value, await head.readTensor(name), entry.dtype);
      }
    }
    const name = adapter === null ? null : "default";
    if (base.with(name, ({ head }) => head?.outFeatures) !== 1)
      throw new ModelError(
        `${adapter ?? files.path}: is no reward model: it brings no head of one output. Train one with stage: rm`,
      );
    return { base, name };
  } catch (error) {
    base.dispose();
    throw error;
  }
}

/** Tokens that go through the model at once, unless one prompt with an answer is longer. */
const tokensAtOnce = 4096;

/**
 * The scores of answers to prompts. Answers to the same prompt share it. `fail` makes the error for an answer that is too long for the model, or whose score
 * is not finite.
 */
export async function scoreAnswers(
  { base, name }: Scorer,
  rows: readonly { readonly prompt: Int32Array; readonly answer: Int32Array }[],
  signal: AbortSignal,
  fail: (row: number, what: string) => Error,
): Promise<number[]> {
  const most = base.with(name, ({ shape, virtualTokens }) => shape.maxPositions - virtualTokens);
  const groups = new Map<string, number[]>();
  for (const [i, { prompt, answer }] of rows.entries()) {
    const length = prompt.length + answer.length;
    if (length > most) throw fail(i, `prompt and answer have ${length} tokens, and the reward model takes ${most}`);
    if (prompt.length === 0 || answer.length === 0) throw fail(i, "a prompt and an answer need a token each");
    const key = prompt.join();
    groups.set(key, [...(groups.get(key) ?? []), i]);
  }
  const found = new Array<number>(rows.length);
  for (const batch of batchesOf([...groups.values()], rows)) {
    signal.throwIfAborted();
    const families = batch.map(
      (group): Family => ({ prompt: rows[group[0]!]!.prompt, answers: group.map((i) => rows[i]!.answer) }),
    );
    const scores = base.with(name, (model) => scope(() => scoresOf(model, packFamilies(families))));
    const values = await scores.read();
    scores.dispose();
    for (const [at, i] of batch.flat().entries()) {
      if (!Number.isFinite(values[at]))
        throw fail(i, `the reward model says ${values[at]}: its weights are damaged, or have diverged`);
      found[i] = values[at]!;
    }
  }
  return found;
}

/** Groups of answers to one prompt, as many together as go through the model at once; a large group comes in parts. */
function* batchesOf(
  groups: readonly (readonly number[])[],
  rows: readonly { readonly prompt: Int32Array; readonly answer: Int32Array }[],
): Generator<number[][]> {
  let batch: number[][] = [];
  let tokens = 0;
  for (const group of groups) {
    let part: number[] = [];
    for (const i of group) {
      const { prompt, answer } = rows[i]!;
      const more = answer.length + (part.length === 0 ? prompt.length : 0);
      if (tokens > 0 && tokens + more > tokensAtOnce) {
        if (part.length > 0) batch.push(part);
        yield batch;
        [batch, part, tokens] = [[], [], 0];
      }
      tokens += answer.length + (part.length === 0 ? prompt.length : 0);
      part.push(i);
    }
    if (part.length > 0) batch.push(part);
  }
  if (batch.length > 0) yield batch;
}

function scoreSamples(scorer: Scorer, samples: readonly RewardSample[], signal: AbortSignal, name: string): Promise<number[]> {
  const rows = samples.map(({ prompt, answerIds }) => ({ prompt, answer: answerIds }));
  return scoreAnswers(
    scorer,
    rows,
    signal,
    (row, what) => new RewardError(`${samples[row]!.where}: the reward ${name}: ${what}`),
  );
}
