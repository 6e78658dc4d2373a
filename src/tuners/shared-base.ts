import type { Device } from "../core/device.js";
import { copyOf } from "../core/linalg.js";
import { Rng } from "../core/rng.js";
import { outsideOfPass } from "../core/tape.js";
import { unscoped } from "../core/tensor.js";
import { ClosedError, ConfigError } from "../errors.js";
import { baseAdaptersIn } from "../io/adapters/base-adapters.js";
import type { LanguageModel, ModelShape } from "../models/language-model.js";
import { placeHead } from "../models/load.js";
import { Module, Parameter } from "../nn/module.js";
import { tuners } from "./index.js";
import { trainModules } from "./train-whole.js";
import {
  type AdapterValues,
  digestOf,
  mergeBaseAdapter,
  type OpenAdapterOptions,
  type OpenedAdapter,
  openAdapter,
  openBaseAdapters,
  placeAdapter,
  placeTuned,
  readInto,
  readValues,
  type WeightFiles,
} from "./tuned-files.js";
import type { Tuning } from "./tuner.js";

/** What a place of a model can hold. */
type Part = Module | Parameter | null;

/** A place of the base whose content can be replaced. */
interface Place {
  readonly owner: Record<string, unknown>;
  readonly name: string;
  readonly base: Part;
}

interface Change extends Place {
  readonly adapted: Part;
}

/** The names of parameters that are no part of the model begin with this. */
export const besidePrefix = "beside.";

/** What sits on the base under a name: what it puts into which places. */
interface Sitting {
  readonly changes: readonly Change[];
  readonly headModules: readonly string[];
  /** What trains with it and is no part of the model. */
  readonly beside: Module | null;
  /** How many hold it: it is freed only when nobody does. */
  holders: number;
}

/** An adapter, or the base alone, that stays in memory until it is released, even if its name is removed meanwhile. */
export interface Held {
  /** The same for all that hold the same adapter. */
  readonly adapter: unknown;
  /** As `SharedBase.with`. */
  with<T>(body: (model: LanguageModel) => T): T;
  release(): void;
}

export interface AddOptions {
  /** Draws the weights that begin by chance. */
  readonly rng: Rng;
  /** A head of its own, of so many outputs, that trains whole. */
  readonly head?: { readonly outputs: number; readonly rng: Rng };
  /** Lets a method that changes weights of the base change copies of them, so that the base stays as it was: more memory. */
  readonly keepsBase?: boolean;
  /** What training goes on from: gets the places that it needs. */
  readonly weights?: WeightFiles;
  /** Puts it there to be used as it is: nothing of it trains. */
  readonly isFrozen?: boolean;
  /** Trains with it and is no part of the model, such as a value head: whoever uses the model never sees it. */
  readonly beside?: Module;
}

/**
 * A loaded base and what sits on it: adapters and heads of any methods, trainable or loaded, under names. Each is stored as what
 * it puts into places of the model. `with` puts one there for as long as a piece of work takes, by moving references and no
 * weights; outside of it, and with null, the model is bit by bit the base, as if nothing had ever been added.
 */
export class SharedBase {
  readonly #model: LanguageModel;
  readonly #sittings = new Map<string, Sitting>();
  readonly #loading = new Set<string>();
  /** Removed from the names, but still held by somebody. */
  readonly #removed = new Set<Sitting>();
  readonly #bare: Sitting;
  #current: Sitting;
  /** The adapter with which training began, or another model; null for the base alone, undefined once nobody may ask any more. */
  #reference: string | null | undefined | SharedBase = null;
  /** The name of the method that trains the base's own weights, if one does. */
  #changedBy: string | null = null;
  #isDisposed = false;

  /** Digests of the adapters that were merged into the base, in their order. */
  readonly #merged: readonly string[];
  /** What is freed with this one. */
  readonly #companions: { dispose(): void }[] = [];

  /** Takes over the model: nobody else may replace parts of it, or dispose it. `merged` are the digests of the adapters that were merged into it. */
  constructor(model: LanguageModel, { merged = [] }: { readonly merged?: readonly string[] } = {}) {
    this.#model = model;
    this.#merged = merged;
    this.#bare = { changes: [], headModules: model.headModules, beside: null, holders: 0 };
    this.#current = this.#bare;
  }

  get device(): Device {
    return this.#model.device;
  }

  get shape(): ModelShape {
    return this.#model.shape;
  }

  get names(): string[] {
    return [...this.#sittings.keys()];
  }

  /**
   * Puts a method on the base, to train it where nothing else is said, with a head if one is given. Returns the parameters that `weights` belong in, for
   * `readInto`. Throws ConfigError if the name is taken, the settings match nothing in the model, the base has a head already, or
   * weights of the base train in their places beside another; ModelError if `weights` do not fit.
   */
  add(
    name: string,
    tuning: Tuning,
    { rng, head, keepsBase = false, weights, isFrozen = false, beside }: AddOptions,
  ): ReadonlyMap<string, Parameter> {
    this.#checkFree(name);
    const inPlace = tuning.changesBase === true && !keepsBase;
    if (this.#changedBy !== null || (inPlace && this.names.length > 0))
      throw new ConfigError(
        `${inItsPlaces(this.#changedBy ?? name)}: nothing can train beside them. Add that method with keepsBase`,
      );
    let parameters: ReadonlyMap<string, Parameter> = new Map();
    this.#sittings.set(
      name,
      this.#place((model) => {
        if (head !== undefined) placeHead(model, head.outputs, head.rng);
        const settle = tuning.changesBase === true && keepsBase ? standInForWeights(model) : () => {};
        tuning.apply(model, rng);
        settle();
        trainModules(model, model.headModules);
        if (weights !== undefined) parameters = placeTuned(model, tuning, weights);
        if (isFrozen) model.freeze();
      }, beside),
    );
    if (inPlace) this.#changedBy = name;
    return parameters;
  }

  /**
   * Loads an adapter from a folder, with the head that it may bring, and with the adapters below it, merged into weights of its own. Whatever is in use can be used meanwhile; the name is there when all of it is.
   * What was merged into the base itself counts as below it already. Throws ConfigError if the name is taken, the adapter's settings match nothing in the
   * model, or it was trained without what was merged into the base; ModelError if it is none that attune knows or was made for another base.
   */
  async load(name: string, folder: string, options: OpenAdapterOptions = {}): Promise<Pick<OpenedAdapter, "tuner" | "config">> {
    this.#checkFree(name);
    this.#loading.add(name);
    try {
      const opened = await openAdapter(folder, tuners, options);
      const below: [OpenedAdapter, AdapterValues][] = [];
      const all = await openBaseAdapters(baseAdaptersIn(folder, opened.files.config), tuners);
      for (const [i, digest] of this.#merged.entries())
        if (all[i] === undefined || (await digestOf(all[i])) !== digest)
          throw new ConfigError(
            `${folder}: other adapters were merged into the base that is loaded than this one was trained over: load it on a base of its own`,
          );
      for (const adapter of all.slice(this.#merged.length)) below.push([adapter, await readValues(adapter)]);
      let parameters = new Map<string, Parameter>();
      const sitting = this.#place((model) => {
        const settle = below.length > 0 ? standInForWeights(model) : () => {};
        for (const [adapter, values] of below) mergeBaseAdapter(model, adapter, values);
        settle();
        parameters = placeAdapter(model, opened, new Rng(0));
      });
      try {
        await readInto(parameters, opened.files);
      } catch (error) {
        this.#free(sitting);
        throw error;
      }
      this.#sittings.set(name, sitting);
      return { tuner: opened.tuner, config: opened.config };
    } finally {
      this.#loading.delete(name);
    }
  }

  /**
   * Runs `body` with an adapter in its places, or with the base alone (null), and takes it out again. Calls may be nested. `body` must not wait:
   * others would see the adapter. What it records on a tape stays right afterwards, for a tape holds tensors and no modules. Throws ConfigError for a
   * name that is not there, and for null where the weights of the base train in their places.
   */
  with<T>(name: string | null, body: (model: LanguageModel) => T): T {
    return this.#run(this.#sittingOf(name), body);
  }

  /** Says what `withReference` runs with: the adapter with which training began, or the reference of another base, which is taken over. Throws ConfigError, as `with`. */
  setReference(reference: string | null | SharedBase): void {
    if (!(reference instanceof SharedBase)) this.#sittingOf(reference);
    this.#reference = reference;
  }

  /** Frees what is the reference alone, an adapter or another base, once all that will be asked of the reference is known: asking it again is a bug. */
  endReference(): void {
    if (typeof this.#reference === "string") this.remove(this.#reference);
    else if (this.#reference instanceof SharedBase) this.#reference.dispose();
    this.#reference = undefined;
  }

  /**
   * `with` what training began from: the base alone where nobody said another. It says what it would say in an evaluation, also within a forward pass
   * that trains: no dropout, no noise, and no gradients.
   */
  withReference<T>(body: (model: LanguageModel) => T): T {
    const reference = this.#reference;
    if (reference === undefined)
      throw new RangeError("withReference: all that was to be asked of the reference was asked before");
    return outsideOfPass(() => (reference instanceof SharedBase ? reference.withReference(body) : this.with(reference, body)));
  }

  /** Lays hold of an adapter, or of the base alone, so that it can be removed meanwhile and used to the end. Throws ConfigError, as `with`. */
  hold(name: string | null): Held {
    const sitting = this.#sittingOf(name);
    sitting.holders++;
    let isHeld = true;
    return {
      adapter: sitting,
      with: (body) => this.#run(sitting, body),
      release: () => {
        if (!isHeld) return;
        isHeld = false;
        sitting.holders--;
        if (sitting.holders === 0 && this.#removed.delete(sitting)) this.#free(sitting);
      },
    };
  }

  /** What trains of an adapter, by its names in the model. Throws ConfigError, as `with`. */
  parametersOf(name: string): ReadonlyMap<string, Parameter> {
    const { beside } = this.#sittingOf(name);
    const own = beside?.trainableParameters() ?? [];
    return new Map([
      ...this.with(name, (model) => model.trainableParameters()),
      ...[...own].map(([path, parameter]) => [`${besidePrefix}${path}`, parameter] as const),
    ]);
  }

  /** What trains with the adapter that is in its places now, and is no part of the model; null if nothing does. */
  get beside(): Module | null {
    return this.#current.beside;
  }

  /** Takes a name away at once, and frees what was under it as soon as nobody holds it. Throws ConfigError for a name that is not there. */
  remove(name: string): void {
    const sitting = this.#sittingOf(name);
    this.#sittings.delete(name);
    if (sitting.holders === 0) this.#free(sitting);
    else this.#removed.add(sitting);
  }

  /** Frees something with this base: a model that is of use only beside it. */
  keepWith(companion: { dispose(): void }): void {
    this.#checkOpen();
    this.#companions.push(companion);
  }

  /** Frees the base, all that sits on it, held or not, and its reference. Whoever uses it afterwards gets ClosedError. */
  dispose(): void {
    if (this.#reference instanceof SharedBase) this.#reference.dispose();
    for (const sitting of [...this.#sittings.values(), ...this.#removed]) this.#free(sitting);
    this.#sittings.clear();
    this.#removed.clear();
    for (const companion of this.#companions.splice(0)) companion.dispose();
    if (!this.#isDisposed) this.#model.dispose();
    this.#isDisposed = true;
  }

  #checkOpen(): void {
    if (this.#isDisposed) throw new ClosedError("the model was closed; open it again");
  }

  #checkFree(name: string): void {
    this.#checkOpen();
    if (this.#sittings.has(name) || this.#loading.has(name))
      throw new ConfigError(`there is an adapter ${JSON.stringify(name.slice(0, 100))} already: give this one another name`);
  }

  #run<T>(sitting: Sitting, body: (model: LanguageModel) => T): T {
    this.#checkOpen();
    const before = this.#current;
    this.#use(sitting);
    try {
      const result = body(this.#model);
      if (result instanceof Promise) throw new TypeError("SharedBase.with: the body must not wait, and returned a promise");
      return result;
    } finally {
      this.#use(before);
    }
  }

  #use(sitting: Sitting): void {
    if (sitting === this.#current) return;
    for (const { owner, name, base } of this.#current.changes) owner[name] = base;
    for (const { owner, name, adapted } of sitting.changes) owner[name] = adapted;
    this.#model.headModules = sitting.headModules;
    this.#current = sitting;
  }

  /** Lets `body` change the base, and takes the change out again, all at once: nobody sees the model meanwhile. */
  #place(body: (model: LanguageModel) => void, beside: Module | null = null): Sitting {
    const before = this.#current;
    this.#use(this.#bare);
    const places = [...placesOf(this.#model)];
    const takeOut = (): Sitting => {
      const changes = places
        .map((place) => ({ ...place, adapted: place.owner[place.name] as Part }))
        .filter(({ base, adapted }) => adapted !== base);
      const { headModules } = this.#model;
      for (const { owner, name, base } of changes) owner[name] = base;
      this.#model.headModules = this.#bare.headModules;
      return { changes, headModules, beside, holders: 0 };
    };
    try {
      body(this.#model);
      return takeOut();
    } catch (error) {
      this.#free(takeOut());
      throw error;
    } finally {
      this.#use(before);
    }
  }

  /** Frees what a change brought. What it has taken over from the base stays. */
  #free({ changes, beside }: Sitting): void {
    beside?.dispose();
    const before = this.#current;
    this.#use(this.#bare);
    const ofBase = new Set([...this.#model.namedParameters()].map(([, parameter]) => parameter));
    for (const { adapted } of changes)
      for (const parameter of parametersOf(adapted))
        for (const part of [parameter, parameter.original]) if (part !== null && !ofBase.has(part)) part.dispose();
    this.#use(before);
  }

  #sittingOf(name: string | null): Sitting {
    this.#checkOpen();
    if (name === null && this.#changedBy === null) return this.#bare;
    if (name === null)
      throw new ConfigError(`${inItsPlaces(this.#changedBy!)}: the base as it was is gone. Add the method with keepsBase`);
    const sitting = this.#sittings.get(name);
    if (sitting !== undefined) return sitting;
    const there = this.names.length === 0 ? "there are none" : `there are: ${this.names.join(", ")}`;
    throw new ConfigError(`there is no adapter ${JSON.stringify(name.slice(0, 100))}; ${there}`);
  }
}

const inItsPlaces = (name: string) => `the weights of the base train in their places, as ${JSON.stringify(name)}`;

/** Every place of a model that holds a part, or waits for one. */
function* placesOf(model: LanguageModel): Generator<Place> {
  for (const [, module] of model.namedModules())
    for (const [name, value] of Object.entries(module)) {
      if (isPart(value)) yield { owner: module as unknown as Record<string, unknown>, name, base: value };
      else if (Array.isArray(value))
        for (const [i, item] of value.entries())
          if (item instanceof Module) yield { owner: value as unknown as Record<string, unknown>, name: String(i), base: item };
    }
}

/**
 * Puts a second parameter on the same memory in the place of every weight, one for each even where modules share it. Returns what is to be done after a
 * method was applied: stand-ins that train get memory of their own, for the others the weights come back.
 */
function standInForWeights(model: LanguageModel): () => void {
  const standIns = new Map<Parameter, Parameter>();
  const places = [...placesOf(model)].filter((place): place is Place & { base: Parameter } => place.base instanceof Parameter);
  for (const { owner, name, base } of places) {
    const standIn =
      standIns.get(base) ??
      new Parameter(
        base.shape,
        unscoped(() => base.value.alias()),
      );
    standIn.isStoredTransposed = base.isStoredTransposed;
    standIns.set(base, standIn);
    owner[name] = standIn;
  }
  return () => {
    const bases = new Map([...standIns].map(([base, standIn]) => [standIn, base]));
    const moved = [...placesOf(model)]; // a method may have put a part of the base elsewhere
    for (const { owner, name } of [...places, ...moved]) {
      const standIn = owner[name] as Parameter;
      const base = bases.get(standIn);
      if (base !== undefined && !standIn.requiresGrad) owner[name] = base;
    }
    for (const [base, standIn] of standIns) {
      if (!standIn.requiresGrad) standIn.dispose();
      else if (standIn.value.dtype === base.value.dtype) {
        standIn.value = unscoped(() => copyOf(base.value));
        standIn.requiresGrad = true;
      }
    }
  };
}

function isPart(value: unknown): value is Part {
  return value === null || value instanceof Module || value instanceof Parameter;
}

function parametersOf(part: Part): Parameter[] {
  if (part instanceof Parameter) return [part];
  return part === null ? [] : [...part.namedParameters()].map(([, parameter]) => parameter);
}
