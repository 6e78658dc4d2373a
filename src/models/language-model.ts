import type { Device } from "../core/device.js";
import type { Segment } from "../core/ops/attention.js";
import { embeddingNoise } from "../core/ops/embedding-noise.js";
import { gatherRows, mergeRows } from "../core/ops/rows.js";
import { checkpoint } from "../core/tape.js";
import { scope, type Tensor } from "../core/tensor.js";
import { ModelError } from "../errors.js";
import { Dropout } from "../nn/dropout.js";
import { KVCache } from "../nn/kv-cache.js";
import type { Linear } from "../nn/linear.js";
import { Module } from "../nn/module.js";
import { checkVirtual, type ExtendedBatch, extendBatch, type TokenBatch } from "./token-batch.js";

/** What the rest of attune needs to know of a model's shape. */
export interface ModelShape {
  readonly vocabSize: number;
  readonly width: number;
  readonly layers: number;
  /** Columns of one layer's keys: G · D. */
  readonly kvWidth: number;
  readonly maxPositions: number;
}

/** Vectors that are put before every sequence, as if they were the embeddings of P tokens. */
export interface PromptVectors extends Module {
  /** P */
  readonly length: number;
  /** (P, C) */
  forward(): Tensor;
}

/** Keys and values that are put before those of every sequence in each layer, as if P tokens stood before it. */
export interface PastKeyValues extends Module {
  /** P */
  readonly length: number;
  /** For each layer, keys as attention sees them, and values: (P, G · D) each. */
  forward(): readonly (readonly [keys: Tensor, values: Tensor])[];
}

/** What a layer needs to know of the rows that go through it. */
export interface LayerInput {
  /** (T) */
  readonly positions: Int32Array;
  /** Which rows of queries attend to which rows of what `keysAndValues` returns. */
  readonly segments: readonly Segment[];
  /** All keys and values that layer `index` attends to, given those of the rows at hand (T, G · D): a cache or a prefix adds its own. */
  keysAndValues(index: number, k: Tensor, v: Tensor): readonly [keys: Tensor, values: Tensor];
}

/** A layer of a model: x (T, C) → (T, C). */
export interface Block extends Module {
  forward(x: Tensor, input: LayerInput): Tensor;
}

/**
 * A transformer over tokens, as tuners and objectives know it. Tuners reach it through four seams: the Linears among its modules can be
 * replaced; so can each `Residual`, which joins a sub-layer to what went around it; `prompt` puts vectors before the embeddings; `prefix`
 * puts keys and values before those of each layer. A model knows its seams, never who uses them.
 */
export abstract class LanguageModel extends Module {
  abstract readonly device: Device;
  abstract readonly shape: ModelShape;
  /** Whether each layer's activations are computed again in backward instead of staying in memory. */
  gradientCheckpointing = false;
  /** α of the noise that tokens' vectors get in training, by NEFTune; 0 for none. Virtual tokens and the output projection get none. */
  noiseAlpha = 0;
  prompt: PromptVectors | null = null;
  prefix: PastKeyValues | null = null;

  /** In words, what the base's files say or hold that has no effect on the model. */
  readonly notices: string[] = [];

  /** Vectors of tokens, (T, C). */
  protected abstract embed(ids: Int32Array): Tensor;
  /** What is applied between the vectors and the first layer: nothing, unless a family adds positions or a norm there. */
  protected start(x: Tensor, _positions: Int32Array): Tensor {
    return x;
  }
  protected abstract get blocks(): readonly Block[];
  /** What is applied after the last layer. */
  protected abstract finish(x: Tensor): Tensor;

  /** The Linear that makes a classifier's logits from `summary`; null in any other model. */
  abstract get head(): Linear | null;
  /** The path of the head among the model's modules. */
  abstract readonly headName: string;
  /** Puts a head without weights on the model, of so many outputs; `hasBias` for one that decoders else have not. */
  abstract addHead(outputs: number, hasBias?: boolean): void;
  /** Of the normal distribution that the matrices of a new head are drawn from; as in transformers, unless somebody says otherwise. */
  headDeviation = 0.02;
  /** The vector that stands for each of the S sequences of a batch, once the model has a head: (S, C). */
  abstract summary(batch: TokenBatch): Tensor;
  /** What a classifier says of each sequence of a batch: logits (S, classes). Throws ModelError if the model has no head. */
  classLogits(batch: TokenBatch): Tensor {
    if (this.head === null) throw new ModelError("the model is no classifier: it has no head over whole texts");
    return this.head.forward(this.summary(batch));
  }

  /**
   * Paths of the modules that are new in a classifier: the head, and any module on the way to it that the base lacks. They
   * train whole under every tuner.
   */
  headModules: readonly string[] = [];
  /** True if the files hold a classifier: its head stands where other models have their output projection. */
  isClassifier = false;
  /** Modules between the layers and the head, by path, that a base may lack. */
  readonly optionalModules: readonly string[] = [];

  /** The vectors of tokens as they enter the first layer, (T, C): virtual tokens may start as these. */
  tokenVectors(ids: Int32Array): Tensor {
    return this.embed(ids);
  }

  /**
   * For a tensor of the files that the model has no place for: in words, what it is, if it may be left out; null if that is an
   * error.
   */
  reasonToLeave(_name: string): string | null {
    return null;
  }

  /** The chances with which the model itself drops numbers in training, by the keys of its config; empty if it drops none. */
  get ownDropout(): ReadonlyMap<string, number> {
    return new Map(this.#dropouts().flatMap(({ key, p }) => (p > 0 ? [[key, p]] : [])));
  }

  disableDropout(): void {
    for (const place of this.#dropouts()) place.p = 0;
  }

  #dropouts(): Dropout[] {
    return [...this.namedModules()].flatMap(([, module]) => (module instanceof Dropout ? [module] : []));
  }

  /** P: how many rows of each sequence `prompt` or `prefix` takes. */
  get virtualTokens(): number {
    return this.prompt?.length ?? this.prefix?.length ?? 0;
  }

  /** A cache for `slots` sequences, each begun with as many virtual tokens as the model has now. */
  newCache(slots: number): KVCache {
    const { layers, kvWidth } = this.shape;
    const cache = new KVCache(this.device, { layers, slots, width: kvWidth });
    for (let slot = 0; slot < slots; slot++) cache.begin(slot, this.virtualTokens);
    return cache;
  }

  /** The last hidden state of every token: (T, C). Throws ShapeError if sequences in a cache were begun with other virtual tokens. */
  hidden(batch: TokenBatch): Tensor {
    checkVirtual(batch, this.virtualTokens);
    if (this.prompt !== null) return this.#hiddenAfterPrompt(batch, this.prompt, ({ tokenRows }) => tokenRows);
    const input = this.prefix === null ? presentOnly(batch) : afterPrefix(batch, this.prefix);
    return this.#run(this.#noisyVectors(batch), input);
  }

  /** The last hidden state of the first row of each sequence, (S, C). With a `prompt` that row is a virtual token's. */
  protected firstHidden(batch: TokenBatch): Tensor {
    const firstRows = ({ segments }: Pick<TokenBatch, "segments">) => Int32Array.from(segments, ({ qStart }) => qStart);
    if (this.prompt !== null) return this.#hiddenAfterPrompt(batch, this.prompt, firstRows);
    return gatherRows(this.hidden(batch), firstRows(batch));
  }

  /** The last hidden state of some rows; `chosen` picks them among those of tokens and virtual tokens. */
  #hiddenAfterPrompt(batch: TokenBatch, prompt: PromptVectors, chosen: (extended: ExtendedBatch) => Int32Array): Tensor {
    const whole = extendBatch(batch, prompt.length);
    const { virtual, virtualRows, tokenRows, cacheRows, ...extended } = whole;
    const x = mergeRows(extended.positions.length, [
      ...(virtual.length > 0 ? [{ from: prompt.forward(), rows: virtual, at: virtualRows }] : []), // else all are in the cache
      { from: this.#noisyVectors(batch), rows: null, at: tokenRows },
    ]);
    const cache = batch.cache && { store: batch.cache.store, rows: cacheRows };
    return gatherRows(this.#run(x, presentOnly({ ...extended, ...(cache && { cache }) })), chosen(whole));
  }

  #noisyVectors({ ids, segments }: TokenBatch): Tensor {
    return embeddingNoise(this.embed(ids), segments, this.noiseAlpha);
  }

  #run(vectors: Tensor, input: LayerInput): Tensor {
    let x = this.start(vectors, input.positions);
    for (const block of this.blocks) {
      const before = x;
      const forward = () => block.forward(before, input);
      x = this.gradientCheckpointing ? checkpoint(forward) : scope(forward);
    }
    return this.finish(x);
  }
}

/** Rows attend to each other, and to what the cache holds of their sequence. */
function presentOnly({ positions, segments, cache }: Omit<TokenBatch, "ids">): LayerInput {
  return {
    positions,
    segments,
    keysAndValues: (index, k, v) => (cache === undefined ? [k, v] : cache.store.store(index, k, v, cache.rows)),
  };
}

/** Puts the prefix before every sequence: among the rows at hand or, when a sequence begins in a cache, into the cache. */
function afterPrefix(batch: TokenBatch, prefix: PastKeyValues): LayerInput {
  const { virtual, virtualRows, tokenRows, cacheRows, ...extended } = extendBatch(batch, prefix.length);
  const { cache } = batch;
  const past = virtual.length > 0 ? prefix.forward() : [];
  const virtualInCache = cache && virtualRows.map((row) => cacheRows[row]!);
  return {
    positions: batch.positions.map((position) => position + prefix.length),
    segments: extended.segments.map((segment, i) => {
      const { qStart, qLength } = batch.segments[i]!;
      return { ...segment, qStart, qLength };
    }),
    keysAndValues(index, k, v) {
      if (cache === undefined) {
        const merged = (present: Tensor, before: Tensor) =>
          mergeRows(extended.positions.length, [
            { from: before, rows: virtual, at: virtualRows },
            { from: present, rows: null, at: tokenRows },
          ]);
        const [keys, values] = past[index]!;
        return [merged(k, keys), merged(v, values)];
      }
      if (virtualInCache!.length > 0) {
        const [keys, values] = past[index]!;
        cache.store.store(index, gatherRows(keys, virtual), gatherRows(values, virtual), virtualInCache!);
      }
      return cache.store.store(index, k, v, cache.rows);
    },
  };
}
