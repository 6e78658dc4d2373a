/** What Python would raise: the template or what it is given is wrong. */
export class TemplateError extends Error {}

/** The template uses something of Python or Jinja that is not built here. It is refused rather than rendered otherwise. */
export class Unsupported extends TemplateError {
  constructor(what: string) {
    super(`it uses ${what}, which attune does not know`);
  }
}

/** Templates come from strangers: work is counted, and ends where the budget does. */
export class Work {
  readonly #limit: number;
  readonly #maxChars: number;
  #done = 0;

  constructor({ steps, chars }: { steps: number; chars: number }) {
    this.#limit = steps;
    this.#maxChars = chars;
  }

  /** Counts `steps` more. Throws OverBudget. */
  count(steps = 1): void {
    this.#done += steps;
    if (this.#done > this.#limit) throw new OverBudget(`over ${this.#limit} steps`);
  }

  /** Counts work on a text of so many characters; no text may be longer than the budget's. */
  text(chars: number): void {
    this.bound(chars);
    this.count(1 + (chars >> 5));
  }

  /** Throws OverBudget for a text of so many characters. */
  bound(chars: number): void {
    if (chars > this.#maxChars) throw new OverBudget(`a text of over ${this.#maxChars} characters`);
  }
}

export class OverBudget extends Error {}
