import { Stage } from "./stage.js";

/** Ids that a model expects around a text: `[CLS]` and `[SEP]`, or a begin-of-sequence token. */
export interface Frame {
  readonly before: readonly number[];
  readonly after: readonly number[];
}

/**
 * What the post-processor of a tokenizer.json puts around a single text. Source: tokenizers 0.23, src/processors.
 * Throws ModelError for kinds and options that are not known.
 */
export function frameOf(value: unknown, where: string): Frame {
  return value === null ? nothing : new Stage(value, "post_processor", where).build(kinds);
}

const nothing: Frame = { before: [], after: [] };

const kinds: Readonly<Record<string, (stage: Stage) => Frame>> = {
  BertProcessing: around,
  RobertaProcessing: around,
  ByteLevel(stage) {
    stage.ignore("add_prefix_space", "trim_offsets", "use_regex");
    return nothing;
  },
  Sequence(stage) {
    const frames = stage.stages("processors").map((each) => each.build(kinds));
    const [frame = nothing, ...more] = frames.filter(({ before, after }) => before.length + after.length > 0);
    return more.length === 0 ? frame : stage.fail("more than one of its processors puts tokens around a text.");
  },
  TemplateProcessing(stage) {
    const special = stage.option("special_tokens", isSpecialTokens, "a mapping of names to ids");
    const single = stage.option("single", isTemplate, 'a list of {"Sequence": …} and {"SpecialToken": …}');
    stage.ignore("pair");
    const at = single.findIndex((piece) => "Sequence" in piece);
    const idsOf = (pieces: typeof single) =>
      pieces.flatMap((piece) => {
        if (!("SpecialToken" in piece) || !Object.hasOwn(special, piece.SpecialToken.id))
          return stage.fail('"single" has to hold the text once, and tokens of "special_tokens".');
        return special[piece.SpecialToken.id]!.ids;
      });
    if (at < 0 || ("Sequence" in single[at]! && single[at].Sequence.id !== "A"))
      return stage.fail('"single" does not hold the text.');
    return { before: idsOf(single.slice(0, at)), after: idsOf(single.slice(at + 1)) };
  },
};

function around(stage: Stage): Frame {
  const [, cls] = stage.option("cls", isPair, "a token with its id");
  const [, sep] = stage.option("sep", isPair, "a token with its id");
  stage.ignore("trim_offsets", "add_prefix_space");
  return { before: [cls], after: [sep] };
}

type Piece = { readonly Sequence: { readonly id: string } } | { readonly SpecialToken: { readonly id: string } };

function isTemplate(value: unknown): value is readonly Piece[] {
  const isNamed = (named: unknown) => typeof (named as { id?: unknown } | null | undefined)?.id === "string";
  return Array.isArray(value) && value.every((piece) => isNamed(piece?.Sequence) !== isNamed(piece?.SpecialToken));
}

function isSpecialTokens(value: unknown): value is Readonly<Record<string, { readonly ids: readonly number[] }>> {
  if (typeof value !== "object" || value === null) return false;
  return Object.values(value).every((token) => Array.isArray(token?.ids) && token.ids.every(Number.isSafeInteger));
}

function isPair(value: unknown): value is readonly [string, number] {
  return Array.isArray(value) && value.length === 2 && typeof value[0] === "string" && Number.isSafeInteger(value[1]);
}
