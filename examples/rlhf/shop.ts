/**
 * The task: a shop's clerk answers what something costs. How good an answer is, a rule says that a person understands (`gold`); the pairs that the reward
 * model learns from are what somebody chose who follows it, and is wrong in one case of ten. The same seed gives the same rows.
 */

/** What a customer asks, and what they may be answered. */
export interface Question {
  readonly text: string;
  readonly item: string;
  readonly price: number;
}

const courteous = /\b(please|thank|thanks|welcome|happy|glad|pleasure)\b/i;
const mostWords = 20;

/**
 * 0 to 4 points: one for the item's name, one for its price and no other, one for a courteous word, and one for at most 20 words, of which each word more
 * takes a tenth.
 */
export function gold({ item, price }: Pick<Question, "item" | "price">, answer: string): number {
  const words = answer.trim().split(/\s+/).filter(Boolean).length;
  if (words === 0) return 0;
  const numbers = answer.match(/\d+/g) ?? [];
  const isRight = numbers.length > 0 && numbers.every((number) => Number(number) === price);
  const brevity = Math.max(0, 1 - Math.max(0, words - mostWords) / 10);
  return Number(answer.toLowerCase().includes(item)) + Number(isRight) + Number(courteous.test(answer)) + brevity;
}

/** Mulberry32: a small generator of numbers in [0, 1) that is the same everywhere. */
export function makeRandom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const items = `mug lamp kettle vase clock chair basket candle mirror pillow blanket teapot bowl spoon plate tray rug stool shelf
  bottle brush towel apron frame ladder bench broom bucket lantern notebook umbrella wallet`.split(/\s+/);
const openings = ["", "", "Hi, ", "Hello, ", "Excuse me, ", "Good morning, "];
const asked = [
  "what does the {i} cost?",
  "how much is the {i}?",
  "what is the price of the {i}?",
  "how much for the {i}?",
  "I like the {i}. What do you ask for it?",
];
const greetings = ["Thanks for asking! ", "Welcome! ", "Hello and welcome. ", "Happy to help. ", "Thank you for coming in. "];
const farewells = [
  " Please let me know if you need more.",
  " Thank you!",
  " It is a pleasure to help.",
  " Glad to help!",
  " Please come again.",
];
const named = ["The {i} is {p} euros.", "The {i} costs {p} euros.", "Our {i} is {p} euros.", "For the {i} we ask {p} euros."];
const unnamed = ["It is {p} euros.", "That one costs {p} euros.", "{p} euros.", "It costs {p}."];
const priceless = ["The {i} is on the list.", "That depends.", "I would have to look that up.", "The {i} is not cheap."];
const curt = ["", "", "", " Next!", " Can you not read?", " Buy it or leave it."];
const tales = [
  " We have sold these for many years now, my uncle began with a small shop near the river, and people came from all over town to see it.",
  " You know, there was a time when everything was cheaper, and everybody knew everybody, and nobody asked such things at all in this street.",
  " The other day somebody asked the same, and we talked for an hour about the weather and the market and the new road behind the church.",
];

/** Draws questions and answers of a clerk whose manners vary. */
export class Shop {
  readonly #random: () => number;

  constructor(seed: number) {
    this.#random = makeRandom(seed);
  }

  question(): Question {
    const [item, ...others] = this.#several(items, 3) as [string, string, string];
    const prices = this.#several(
      Array.from({ length: 89 }, (_, i) => i + 4),
      3,
    ) as [number, number, number];
    const list = this.#several([0, 1, 2], 3).map((i) => `${[item, ...others][i]} ${prices[i]}`);
    const words = `${this.#pick(openings)}${this.#pick(asked).replace("{i}", item)}`;
    const text = `Price list in euros: ${list.join(", ")}. ${words[0]!.toUpperCase()}${words.slice(1)}`;
    return { text, item, price: prices[0] };
  }

  answer({ item, price }: Question): string {
    const kind = this.#random();
    const core = this.#pick(kind < 0.5 ? named : kind < 0.85 ? unnamed : priceless);
    const said = this.#random() < 0.85 ? price : price + 1 + Math.floor(9 * this.#random());
    const isCourteous = this.#random() < 0.4;
    const greeting = isCourteous && this.#random() < 0.5 ? this.#pick(greetings) : "";
    const farewell = isCourteous && greeting === "" ? this.#pick(farewells) : isCourteous ? "" : this.#pick(curt);
    const tale = this.#random() < 0.3 ? this.#pick(tales) : "";
    return `${greeting}${core.replace("{i}", item).replace("{p}", String(said))}${tale}${farewell}`;
  }

  /** Two answers of different worth, the better one first; of ten pairs, one is the wrong way round. */
  pair(question: Question): { readonly chosen: string; readonly rejected: string } {
    for (;;) {
      const [a, b] = [this.answer(question), this.answer(question)];
      const difference = gold(question, a) - gold(question, b);
      if (Math.abs(difference) < 0.25) continue;
      const isWrong = this.#random() < 0.1;
      return difference > 0 !== isWrong ? { chosen: a, rejected: b } : { chosen: b, rejected: a };
    }
  }

  #pick<T>(choices: readonly T[]): T {
    return choices[Math.floor(this.#random() * choices.length)]!;
  }

  #several<T>(choices: readonly T[], count: number): T[] {
    const left = [...choices];
    return Array.from({ length: count }, () => left.splice(Math.floor(this.#random() * left.length), 1)[0]!);
  }
}

const asMessages = ({ text }: Question) => [{ role: "user", content: text }];

/** The files of the example, as rows. No prompt is in two of them. */
export function shopRows(counts = { answers: 400, pairs: 2000, prompts: 400, heldout: 64 }) {
  const shop = new Shop(2026);
  const seen = new Set<string>();
  const questions = (count: number): Question[] => {
    const found: Question[] = [];
    while (found.length < count) {
      const question = shop.question();
      if (!seen.has(question.text)) found.push(question);
      seen.add(question.text);
    }
    return found;
  };
  return {
    /** What a clerk of mixed manners said. */
    answers: questions(counts.answers).map((question) => ({
      messages: [...asMessages(question), { role: "assistant", content: shop.answer(question) }],
    })),
    pairs: questions(counts.pairs).map((question) => ({ prompt: question.text, ...shop.pair(question) })),
    prompts: questions(counts.prompts).map((question) => ({ messages: asMessages(question) })),
    heldout: questions(counts.heldout).map((question) => ({
      messages: asMessages(question),
      item: question.item,
      price: question.price,
    })),
  };
}
