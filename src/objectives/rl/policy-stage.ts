import { z } from "zod";
import type { Tensor } from "../../core/tensor.js";
import type { PromptRow } from "../../data/prompt-rows.js";
import type { BranchBatch } from "../../models/branches.js";
import { asCausalLM } from "../../models/causal-lm.js";
import type { LanguageModel } from "../../models/language-model.js";
import { Judge } from "../../rewards/judge.js";
import { rewardKeys } from "../../rewards/rewards.js";
import type { SharedBase } from "../../tuners/shared-base.js";
import {
  type ComputedTerm,
  defineObjective,
  type Experience,
  type Objective,
  type RoundStart,
  type Task,
  type Total,
} from "../objective.js";
import { healthNotes } from "./health.js";
import { heldOutAnswers } from "./held-out.js";
import { type Judges, judgesOf, readPrompts } from "./judges.js";
import { answerLogProbs, cut, type PolicyBatch, type PolicyRow, scored, type Trajectory } from "./policy.js";
import { policyReference, policyReferenceKeys } from "./reference.js";
import { type Answered, decodes, rollOut, rolloutMetrics } from "./rollout.js";
import { policyRateFactor, Sampling, type SamplingSettings, samplingNames, samplingNotes } from "./settings.js";
import { type Watch, watchedBy, watchKeys, watchOf } from "./watch.js";

/** Settings of every stage that learns from its own answers. */
export const policyKeys = { ...rewardKeys, ...policyReferenceKeys, ...watchKeys };

const Policy = z.object(policyKeys);
export type PolicySettings = z.output<typeof Policy>;

export interface PolicyStage<T extends Trajectory, Config> {
  readonly name: string;
  readonly summary: string;
  readonly config: z.ZodType<Config>;
  /** Others' names of settings, beside those of sampling. */
  readonly otherNames?: Readonly<Record<string, string>>;
  taskOf(config: Config & SamplingSettings, judges: Judges): Task<PolicyRow<T>>;
}

/** A stage that learns from its own answers: it reads prompts, draws by temperature alone, is judged and watched. */
export function definePolicyStage<T extends Trajectory, Config extends PolicySettings>({
  name,
  summary,
  config,
  otherNames = {},
  taskOf,
}: PolicyStage<T, Config>): Objective<PolicyRow<T>, Config> {
  return defineObjective<PolicyRow<T>, Config>({
    ...{ name, summary, config, rateFactor: policyRateFactor, usedBy: "chat" },
    narrows: Sampling,
    otherNames: { ...samplingNames, ...otherNames },
    notes: `${samplingNotes}\n\n${healthNotes}`,

    check(model) {
      asCausalLM(model, `stage ${name}`);
    },

    read: readPrompts,

    task(_rows, settings, circumstances) {
      const sampling = Sampling.parse(circumstances.common ?? {});
      return taskOf({ ...settings, ...sampling }, watchedBy(judgesOf(name, settings, circumstances), settings, circumstances));
    },
  });
}

export interface PolicyOptions {
  /** Answers to each prompt of a roll-out. */
  readonly count: number;
  /** Whether the divergence from the reference costs anything. */
  readonly hasReference: boolean;
}

/** What tasks that learn from their own answers have in common, from the roll-out to what a round tells. */
export class PolicyRounds {
  readonly watch: Watch;
  /** What such tasks say alike. */
  readonly task;
  readonly #judges: Judges;
  readonly #count: number;
  readonly #hasReference: boolean;
  readonly #temperature: number;

  constructor(config: PolicySettings & SamplingSettings, judges: Judges, { count, hasReference }: PolicyOptions) {
    const { temperature, max_new_tokens } = config;
    const { rewards, usesBase = false, warn } = judges;
    const sampling = { temperature, max_new_tokens, judge: new Judge(rewards, warn) };
    const watch = watchOf(config, judges, { sampling, hasReference });
    this.watch = watch;
    this.#judges = judges;
    this.#count = count;
    this.#hasReference = hasReference;
    this.#temperature = temperature;
    this.task = {
      ...policyReference(config, { hasReference, usesBase, warn }),
      identity: { temperature, max_new_tokens },
      shorten<R extends PromptRow>(row: R, tokens: number): R {
        return { ...row, prompt: row.prompt.subarray(0, tokens), tokens };
      },
      decodes: decodes(count, config),
      state: watch.health.state,
      whyStop: () => watch.health.whyStop(),
      evaluation: () => heldOutAnswers(watch),
    };
  }

  /** Lets the policy answer the prompts of a round. */
  async answer(rows: readonly PromptRow[], at: RoundStart, base: SharedBase): Promise<Answered[]> {
    const { policy, rng, signal } = at;
    await this.watch.before(at, base);
    const { tokenizer } = this.#judges;
    return await rollOut(base, rows, { ...this.watch.sampling, tokenizer, count: this.#count, policy, rng, signal });
  }

  /** Rows in the micro-batches of the plan, with what the reference says of them and, where `asksPolicy`, the policy that answered. */
  async score<T extends Trajectory>(
    rows: readonly PolicyRow<T>[],
    { batchSizes, policy, signal }: RoundStart,
    base: SharedBase,
    { asksPolicy, collate }: { readonly asksPolicy: boolean; collate(rows: readonly PolicyRow<T>[]): PolicyBatch<T> },
  ): Promise<PolicyRow<T>[][]> {
    const batches: PolicyRow<T>[][] = [];
    const old = asksPolicy ? (body: (model: LanguageModel) => Tensor) => base.with(policy, body) : null;
    const reference = this.#hasReference ? (body: (model: LanguageModel) => Tensor) => base.withReference(body) : null;
    for (const batch of cut(rows, batchSizes)) {
      signal.throwIfAborted();
      batches.push(await scored(batch, { old, reference }, { collate, temperature: this.#temperature }));
    }
    return batches;
  }

  /** What a round gives to train on, with what its answers and rewards were, and what is seen of the policy's health. */
  experience<R extends PromptRow>(
    answered: readonly Answered[],
    steps: Experience<R>["steps"],
    metrics: Readonly<Record<string, Total>>,
  ): Experience<R> & { readonly taken: () => void } {
    const all = { ...rolloutMetrics(answered, this.#judges.rewards), ...metrics };
    const look = this.watch.health.round({ answered, metrics: all });
    return { steps, metrics: { ...all, ...look.metrics }, taken: look.taken };
  }

  /** A loss of the log-probabilities of answers' tokens, whose metrics are watched. Hidden states are (T, C). */
  term(
    model: LanguageModel,
    hidden: Tensor,
    branches: BranchBatch,
    lossOf: (logProbs: Float32Array) => ReturnType<ComputedTerm["loss"]> & { readonly metrics: Record<string, Total> },
  ): ComputedTerm {
    return {
      of: answerLogProbs(model, hidden, branches, this.#temperature),
      loss: (logProbs) => {
        const result = lossOf(logProbs);
        this.watch.health.step(result.metrics);
        return result;
      },
    };
  }
}
