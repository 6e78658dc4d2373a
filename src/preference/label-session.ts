import { createHash } from "node:crypto";
import { Rng } from "../core/rng.js";
import type { Message } from "../text/chat-template.js";
import { itemOf, type Label, type LabelItem, type LabelRow, type LabelStore, rowOf } from "./label-store.js";

/** How items are shown to a rater. */
export interface LabelSessionOptions {
  /** Who labels. What others have labelled in the same store is still to be done. */
  readonly rater: string;
  /** Decides what stands left, and what is shown again. Default 0. */
  readonly seed?: number;
  /** Share of the items that are shown a second time, from 0 to 1. Default 0.1. */
  readonly repeats?: number;
}

/** What a rater sees. Nothing in it tells whose an answer is, nor whether it was shown before. */
export interface Shown {
  readonly prompt: readonly Message[];
  readonly left: readonly Message[];
  readonly right: readonly Message[];
}

/** What a rater can say of two answers that stand left and right. */
export type Judgement = "left" | "right" | "tie" | "both_bad";

/** What is being judged. */
interface Current {
  readonly item: LabelItem;
  readonly isRepeat: boolean;
  readonly left: "a" | "b";
}

/** How far a rater is. */
export interface LabelProgress {
  /** Labels of this rater in the store, and how many of them are of items seen before. */
  readonly given: number;
  readonly repeats: number;
  /** Labels still to be given to the items there are. */
  readonly left: number;
  /** Items that are not shown, as both answers are the same or both are empty. */
  readonly pointless: number;
}

/**
 * What one rater is shown, one item after the other, and what becomes of what he says. It knows nothing of a terminal or a page.
 *
 *     const session = new LabelSession(store, { rater: "ann" });
 *     for (const item of items) session.add(item);
 *     for (let shown = session.next(); shown !== undefined; shown = session.next()) await session.judge(await ask(shown));
 *
 * Items come in the order in which they were added. Everything else follows from seed, rater and the rows of the store, so that a session that is begun
 * again goes on as if it had never ended: which answer stands left (in every ten items, each does five times), and which item is shown again (one in ten,
 * after ten to twenty others). An item that this rater has labelled is not shown again for other reasons.
 */
export class LabelSession {
  readonly #store: LabelStore;
  readonly #rater: string;
  readonly #seed: number;
  readonly #repeats: number;
  readonly #items = new Map<string, LabelItem>();
  /** Items that this rater has labelled, in that order, with the number of his labels before each. */
  readonly #firsts: { readonly row: LabelRow; readonly at: number }[] = [];
  readonly #done = new Set<string>();
  readonly #repeated = new Set<string>();
  #given = 0;
  #pointless = 0;
  #current: Current | undefined;

  constructor(store: LabelStore, { rater, seed = 0, repeats = 0.1 }: LabelSessionOptions) {
    this.#store = store;
    this.#rater = rater;
    this.#seed = seed;
    this.#repeats = repeats;
    this.#recount();
  }

  /** Takes an item in, to be shown after those before it. One that is there already, by its id, counts once. */
  add(item: LabelItem): void {
    if (this.#items.has(item.id)) return;
    const [a, b] = [item.answers.a, item.answers.b].map(said) as [string, string];
    if (a === b) this.#pointless++;
    this.#items.set(item.id, item);
  }

  get progress(): LabelProgress {
    const fresh = [...this.#items.values()].filter((item) => this.#isFresh(item)).length;
    const due = this.#firsts.filter((_, ordinal) => this.#isToRepeat(ordinal)).length;
    return { given: this.#given, repeats: this.#repeated.size, left: fresh + due, pointless: this.#pointless };
  }

  /**
   * What is to be judged now: the same until it is. Undefined where nothing is left. `isMoreComing`: further items will be added, so that what waits to be shown
   * again can wait longer.
   */
  next({ isMoreComing = false }: { isMoreComing?: boolean } = {}): Shown | undefined {
    this.#current ??= this.#choose(isMoreComing);
    if (this.#current === undefined) return undefined;
    const { item, left } = this.#current;
    return { prompt: item.prompt, left: item.answers[left], right: item.answers[left === "a" ? "b" : "a"] };
  }

  /** Stores what the rater says of what `next` shows; it is on the disk when this resolves. Throws as `LabelStore.append`; the item is then still to be judged. */
  async judge(judgement: Judgement, { note, ms = 0 }: { note?: string | undefined; ms?: number } = {}): Promise<LabelRow> {
    if (this.#current === undefined) throw new Error("there is nothing to judge: call next() first");
    const { item, isRepeat, left } = this.#current;
    const right = left === "a" ? "b" : "a";
    const label: Label = judgement === "left" ? left : judgement === "right" ? right : judgement;
    const row = rowOf(item, {
      label,
      ...(isRepeat && { repeat: true as const }),
      shown: { left, right },
      rater: this.#rater,
      ms: Math.round(ms),
      ...(note !== undefined && note !== "" && { note }),
      ts: new Date().toISOString(),
    });
    await this.#store.append(row);
    this.#current = undefined;
    this.#count(row);
    return row;
  }

  /**
   * Takes the last label of the store back, so that its item is shown next; undefined where there is none, or it is another rater's.
   * Throws as `LabelStore.undo`.
   */
  async undo(): Promise<LabelRow | undefined> {
    const last = this.#store.rows.at(-1);
    if (last?.rater !== this.#rater) return undefined;
    await this.#store.undo();
    this.#recount();
    const item = itemOf(last);
    this.#current = { item, isRepeat: last.repeat === true, left: last.shown.left };
    return last;
  }

  #recount(): void {
    this.#given = 0;
    this.#firsts.length = 0;
    this.#done.clear();
    this.#repeated.clear();
    for (const row of this.#store.rows) if (row.rater === this.#rater) this.#count(row);
  }

  #count(row: LabelRow): void {
    if (row.repeat) this.#repeated.add(row.id);
    else {
      this.#done.add(row.id);
      this.#firsts.push({ row, at: this.#given });
    }
    this.#given++;
  }

  #isFresh(item: LabelItem): boolean {
    return !this.#done.has(item.id) && said(item.answers.a) !== said(item.answers.b);
  }

  #choose(isMoreComing: boolean): Current | undefined {
    const due = this.#firsts.find(({ at }, i) => this.#isToRepeat(i) && this.#given - at >= this.#gapOf(i));
    if (due !== undefined) return this.#shown(itemOf(due.row), true);
    for (const item of this.#items.values()) if (this.#isFresh(item)) return this.#shown(item, false);
    if (isMoreComing) return undefined;
    const last = this.#firsts.find((_, i) => this.#isToRepeat(i));
    return last === undefined ? undefined : this.#shown(itemOf(last.row), true);
  }

  #shown(item: LabelItem, isRepeat: boolean): Current {
    return { item, isRepeat, left: this.#leftAt(this.#given) };
  }

  /** Whether the item that this rater labelled as his n-th is to be shown again. */
  #isToRepeat(ordinal: number): boolean {
    const { row, at } = this.#firsts[ordinal]!;
    if (this.#repeated.has(row.id) || this.#given - at < leastGap) return false;
    // One of every 1 / repeats items, at random among them.
    const blocks = [ordinal, ordinal + 1].map((n) => Math.floor(n * this.#repeats));
    return blocks.some((block) => {
      const pick = (block + this.#rng(`repeat ${block}`).float()) / this.#repeats;
      return Math.floor(pick) === ordinal;
    });
  }

  /** How many labels after an item it is shown again. */
  #gapOf(ordinal: number): number {
    return 10 + this.#rng(`gap ${ordinal}`).below(10);
  }

  /** Which answer stands left in a rater's n-th showing: in every ten, each five times, in random order. */
  #leftAt(showing: number): "a" | "b" {
    const rng = this.#rng(`left ${Math.floor(showing / blockSize)}`);
    const sides = Array.from({ length: blockSize }, (_, i): "a" | "b" => (i % 2 === 0 ? "a" : "b"));
    for (let i = blockSize - 1; i > 0; i--) {
      const j = rng.below(i + 1);
      [sides[i], sides[j]] = [sides[j]!, sides[i]!];
    }
    return sides[showing % blockSize]!;
  }

  #rng(label: string): Rng {
    return Rng.for(this.#seed, `${this.#rater} ${label}`);
  }
}

const blockSize = 10;
/** Nobody forgets what he has seen two items ago: what cannot wait so long is not shown again. */
const leastGap = 4;

/** What a side says, for comparing. */
function said(messages: readonly Message[]): string {
  const parts = messages.map(({ content, tool_calls = [] }) => [content.trim(), ...tool_calls]);
  return JSON.stringify(parts.filter(([content, ...calls]) => content !== "" || calls.length > 0));
}

/** The id of an item: the same for the same prompt and answers. */
export function itemIdOf({ prompt, answers }: Pick<LabelItem, "prompt" | "answers">): string {
  return createHash("sha256")
    .update(JSON.stringify([prompt, answers.a, answers.b]))
    .digest("hex")
    .slice(0, 16);
}
