import { thoughtTags } from "./shield.js";

const [opening, closing] = thoughtTags;

/** A part of an answer: what the model thought before it, or what it says. */
export interface AnswerPart {
  readonly kind: "thoughts" | "words";
  readonly text: string;
}

/**
 * Takes the thoughts, `<think>…</think>` before everything else, out of an answer that comes piece by piece. With `isOpen` the generation prompt has
 * opened them already. Nothing is held back longer than it takes to know what it is. Line feeds around the tags belong to neither part.
 */
export class ThoughtSplitter {
  #state: "start" | "thoughts" | "gap" | "words";
  /** What has come and is not known yet. */
  #held = "";
  /** Whether anything of the thoughts was given out. */
  #hasThoughts = false;

  constructor(isOpen: boolean) {
    this.#state = isOpen ? "thoughts" : "start";
  }

  push(piece: string): AnswerPart[] {
    this.#held += piece;
    const parts: AnswerPart[] = [];
    if (this.#state === "start") {
      const begun = this.#held.trimStart();
      if (begun.startsWith(opening)) {
        this.#state = "thoughts";
        this.#held = begun.slice(opening.length);
      } else if (!opening.startsWith(begun)) this.#state = "words";
    }
    if (this.#state === "thoughts") {
      const end = this.#held.indexOf(closing);
      if (end >= 0) {
        parts.push(...this.#thoughts(this.#held.slice(0, end).trimEnd()));
        this.#state = "gap";
        this.#held = this.#held.slice(end + closing.length);
      } else {
        const known = this.#held.length - undecided(this.#held);
        parts.push(...this.#thoughts(this.#held.slice(0, known)));
        this.#held = this.#held.slice(known);
      }
    }
    if (this.#state === "gap") {
      this.#held = this.#held.trimStart();
      if (this.#held !== "") this.#state = "words";
    }
    if (this.#state === "words" && this.#held !== "") {
      parts.push({ kind: "words", text: this.#held });
      this.#held = "";
    }
    return parts;
  }

  /** What was held back, at the end of the answer. */
  end(): AnswerPart[] {
    const rest = this.#held;
    this.#held = "";
    if (this.#state === "thoughts") return this.#thoughts(rest.trimEnd());
    return rest === "" || this.#state === "gap" ? [] : [{ kind: "words", text: rest }];
  }

  #thoughts(text: string): AnswerPart[] {
    const shown = this.#hasThoughts ? text : text.trimStart();
    if (shown === "") return [];
    this.#hasThoughts = true;
    return [{ kind: "thoughts", text: shown }];
  }
}

/** How many characters at the end may be space before the closing tag, and the beginning of it. */
function undecided(text: string): number {
  let begun = Math.min(closing.length - 1, text.length);
  while (begun > 0 && !text.endsWith(closing.slice(0, begun))) begun--;
  const before = text.slice(0, text.length - begun);
  return begun + before.length - before.trimEnd().length;
}
