import type { Example } from "../data/example.js";
import type { CausalLM } from "../models/causal-lm.js";
import type { Tokenizer } from "../text/tokenizer/tokenizer.js";
import type { NumberType } from "./choices.js";
import { heldOutLoss } from "./measure.js";
import { adapterOn, mergeAndStore, openBase, type Source } from "./merged-model.js";
import { isPlain } from "./number-types.js";
import { answersOf, isRight, type Question, questionsOf, spread } from "./questions.js";
import { type Reader, readAs } from "./reader.js";
import { judged, type Reading, type Receipt, type Sayings } from "./receipt.js";
import type { CheckRows } from "./run-rows.js";

/** Rows of which the loss is taken, at most, and rows that are answered where nobody says otherwise. Losses of the same rows hardly vary in their difference. */
const [mostLossRows, usualAnswers] = [24, 50];

/** From the fewest bits to the most. */
const typesBySize: readonly NumberType[] = ["q4_0", "q4_k_m", "q8_0", "bf16", "f16", "f32"];

/** Against what readings are judged. */
export interface Before {
  readonly baseLoss: number | null;
  readonly before: Sayings;
}

/** Asks models the same questions, before an export and after. */
export class Check {
  readonly lossRows: readonly Example[];
  readonly #questions: readonly Question[];
  readonly #rows: CheckRows | null;
  readonly #tokenizer: Tokenizer;
  readonly #onCheck: (done: number, total: number) => void;
  #passes = 0;

  constructor(
    rows: CheckRows | null,
    tokenizer: Tokenizer,
    {
      checkRows = usualAnswers,
      onCheck = () => {},
    }: {
      readonly checkRows?: number | undefined;
      readonly onCheck?: ((done: number, total: number) => void) | undefined;
    },
  ) {
    this.#rows = rows;
    this.#tokenizer = tokenizer;
    this.#onCheck = onCheck;
    this.lossRows = rows === null ? [] : spread(rows.rows, mostLossRows);
    this.#questions = rows === null ? [] : questionsOf(rows.rows, tokenizer, checkRows);
  }

  get described(): Receipt["rows"] {
    if (this.#rows === null) return null;
    const { source, from } = this.#rows;
    return { source, from: [...from], loss: this.lossRows.length, answers: this.#questions.length };
  }

  async lossOf(model: CausalLM): Promise<number | null> {
    return this.lossRows.length === 0 ? null : await heldOutLoss(model, this.lossRows);
  }

  /** What a model says. */
  async sayingsOf(model: CausalLM): Promise<Sayings> {
    const count = this.#questions.length;
    const [earlier, usual] = [count * this.#passes++, 3 * count]; // before, and two readers after
    const said = await answersOf(model, this.#questions, this.#tokenizer, (done) =>
      this.#onCheck(earlier + done, Math.max(usual, earlier + count)),
    );
    const right = this.#questions.map((question, i) => isRight(question, said[i]!));
    return { loss: await this.lossOf(model), said, right };
  }

  /** How many answers are right; null where rows have none. */
  rightIn({ right }: Sayings): number | null {
    return this.#hasAnswers ? right.filter(Boolean).length : null;
  }

  judged(reader: Reader, { baseLoss, before }: Before, after: Sayings, change: Reading["change"]): Reading {
    return judged(reader, { baseLoss, before, after, change, hasAnswers: this.#hasAnswers });
  }

  /**
   * The type with the fewest bits above `type` in which a model would pass, tried in memory one after the other; null if none would. `readerOf` says who
   * would read it.
   */
  async passingType(
    source: Source,
    {
      to,
      type,
      readerOf,
    }: { readonly to: "hf" | "gguf"; readonly type: NumberType; readonly readerOf: (type: NumberType) => Reader },
    before: Before,
  ): Promise<NumberType | null> {
    const larger = typesBySize.slice(typesBySize.indexOf(type) + 1).filter((one) => to === "gguf" || isPlain(one));
    for (const candidate of larger) {
      const reader = readerOf(candidate);
      const base = await openBase(source, reader.compute);
      try {
        const tuning = source.adapter === undefined ? undefined : await adapterOn(base.model, source.adapter);
        const [change] = await mergeAndStore(base, tuning, { files: source.files, type: candidate, readers: [reader] });
        readAs(base.model, reader);
        if (this.judged(reader, before, await this.sayingsOf(base.model), change!).verdict === "pass") return candidate;
      } finally {
        base.model.dispose();
      }
    }
    return null;
  }

  get #hasAnswers(): boolean {
    return this.#questions.some(({ answer }) => answer !== null);
  }
}
