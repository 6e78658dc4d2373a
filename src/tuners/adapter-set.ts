import { Rng } from "../core/rng.js";
import { ConfigError } from "../errors.js";
import type { LanguageModel } from "../models/language-model.js";
import { Module, Parameter } from "../nn/module.js";
import { tuners } from "./index.js";
import { type OpenedAdapter, openAdapter, placeAdapter, readInto } from "./tuned-files.js";

/** What can stand in a place of a model. */
type Part = Module | Parameter | null;

/** A place of the base where an adapter puts something else. */
interface Place {
  readonly owner: Record<string, unknown>;
  readonly name: string;
  readonly base: Part;
}

interface Change extends Place {
  readonly adapted: Part;
}

/**
 * Adapters of any methods on one loaded base, of which at most one is in use. An adapter is kept as what it puts into places of the model, so
 * that changing to another one moves references and no weights; without one, the model is bit by bit the base, as if none had ever been loaded.
 *
 * Change between sequences only: the keys and values that a cache holds are those of the adapter that was in use then.
 */
export class AdapterSet {
  readonly #model: LanguageModel;
  readonly #changes = new Map<string, readonly Change[]>();
  readonly #loading = new Set<string>();
  #current: string | null = null;

  /** The model stays its owner's, who must not replace parts of it meanwhile, and disposes it after the set. */
  constructor(model: LanguageModel) {
    this.#model = model;
  }

  get names(): string[] {
    return [...this.#changes.keys()];
  }

  /** Which one is in use; null: the base. */
  get current(): string | null {
    return this.#current;
  }

  /**
   * Loads an adapter from a folder and gives it a name; `use` puts it to use. What is in use can be used meanwhile. Throws ConfigError if the name
   * is taken or the adapter's settings match nothing in the model, ModelError if it is none that attune knows or was made for another base.
   */
  async add(name: string, folder: string): Promise<Pick<OpenedAdapter, "tuner" | "config">> {
    if (this.#changes.has(name) || this.#loading.has(name))
      throw new ConfigError(`there is an adapter ${JSON.stringify(name.slice(0, 100))} already: give this one another name`);
    this.#loading.add(name);
    try {
      const opened = await openAdapter(folder, tuners);
      const { changes, parameters } = this.#place(opened);
      try {
        await readInto(parameters, opened.files);
      } catch (error) {
        this.#dispose(changes);
        throw error;
      }
      this.#changes.set(name, changes);
      return { tuner: opened.tuner, config: opened.config };
    } finally {
      this.#loading.delete(name);
    }
  }

  /** Puts an adapter to use, or the base. Throws ConfigError for a name that is not there. */
  use(name: string | null): void {
    const next = this.#changesOf(name);
    for (const { owner, name: slot, base } of this.#changesOf(this.#current)) owner[slot] = base;
    for (const { owner, name: slot, adapted } of next) owner[slot] = adapted;
    this.#current = name;
  }

  /** Frees an adapter; the base is in use then if it was. Throws ConfigError for a name that is not there. */
  remove(name: string): void {
    const changes = this.#changesOf(name);
    if (this.#current === name) this.use(null);
    this.#changes.delete(name);
    this.#dispose(changes);
  }

  /** Frees all adapters; the base stays. */
  dispose(): void {
    for (const name of this.names) this.remove(name);
  }

  /** Lets a method change the base, and takes the change out again, all at once: nobody sees the model meanwhile. */
  #place(opened: OpenedAdapter): { changes: readonly Change[]; parameters: Map<string, Parameter> } {
    const { current } = this;
    this.use(null);
    const places = [...placesOf(this.#model)];
    const takeOut = () => {
      const changes = places
        .map((place) => ({ ...place, adapted: place.owner[place.name] as Part }))
        .filter(({ base, adapted }) => adapted !== base);
      for (const { owner, name, base } of changes) owner[name] = base;
      return changes;
    };
    try {
      const parameters = placeAdapter(this.#model, opened, new Rng(0));
      return { changes: takeOut(), parameters };
    } catch (error) {
      this.#dispose(takeOut());
      throw error;
    } finally {
      this.use(current);
    }
  }

  /** Frees what a change brought. What it has taken over from the base stays. */
  #dispose(changes: readonly Change[]): void {
    const { current } = this;
    this.use(null);
    const ofBase = new Set([...this.#model.namedParameters()].map(([, parameter]) => parameter));
    for (const { adapted } of changes)
      for (const parameter of parametersOf(adapted)) if (!ofBase.has(parameter)) parameter.dispose();
    this.use(current);
  }

  #changesOf(name: string | null): readonly Change[] {
    if (name === null) return [];
    const changes = this.#changes.get(name);
    if (changes !== undefined) return changes;
    const there = this.names.length === 0 ? "there are none" : `there are: ${this.names.join(", ")}`;
    throw new ConfigError(`there is no adapter ${JSON.stringify(name.slice(0, 100))}; ${there}`);
  }
}

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

function isPart(value: unknown): value is Part {
  return value === null || value instanceof Module || value instanceof Parameter;
}

function parametersOf(part: Part): Parameter[] {
  if (part instanceof Parameter) return [part];
  return part === null ? [] : [...part.namedParameters()].map(([, parameter]) => parameter);
}
