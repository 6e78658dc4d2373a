import type { LanguageModel } from "../models/language-model.js";
import type { AdapterSet } from "../tuners/adapter-set.js";
import type { Held, HoldableBase } from "./decoder.js";

/** Stands where the owner of what sits on a base will: adapters of a set, none of which is removed while it is held. */
export class BaseStandIn implements HoldableBase {
  readonly #model: LanguageModel;
  readonly #adapters: AdapterSet | null;

  constructor(model: LanguageModel, adapters: AdapterSet | null = null) {
    this.#model = model;
    this.#adapters = adapters;
  }

  hold(name: string | null): Held {
    const adapters = this.#adapters;
    const use = (wanted: string | null) => {
      if (wanted !== null || adapters !== null) adapters!.use(wanted);
    };
    use(name);
    use(null);
    return {
      adapter: name,
      with: (body) => {
        use(name);
        try {
          return body(this.#model);
        } finally {
          use(null);
        }
      },
      release: () => {},
    };
  }
}
