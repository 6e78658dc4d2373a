import { unspellBytes } from "./byte-characters.js";
import { metaspaceOptions } from "./pre-tokenizers.js";
import { forEachMatch, Stage } from "./stage.js";

/** Takes tokens one by one and gives the text that is certain with each: the pieces joined are the text of all of them at once. */
export interface TextStream {
  push(token: string): string;
  end(): string;
}

/**
 * A step of decoding, for one sequence. A token may come in several pieces, of which `isStart` marks the first: so steps that join all tokens
 * need not wait for the last. What a step gives is handed to `next` at once.
 */
interface Step {
  push(piece: string, isStart: boolean): void;
  end(): void;
}

type Sink = (piece: string, isStart: boolean) => void;

interface Decoder {
  /** Whether each token has to arrive in one piece. */
  readonly wantsWhole: boolean;
  /** Whether all that comes out is one token, perhaps in pieces. */
  readonly joins: boolean;
  start(next: Sink): Step;
}

/**
 * The decoder of a tokenizer.json: tokens back to text. Source: tokenizers 0.23, src/decoders, whose text it gives; there decoding in a stream
 * runs over all tokens again and again, here each step keeps only what is not certain yet.
 * Throws ModelError for kinds and options that are not known.
 */
export function buildDecoder(value: unknown, where: string): () => TextStream {
  if (value === null) return joinedBySpaces;
  const chain = new Stage(value, "decoder", where).build(kinds);
  const steps: Decoder[] = [];
  let isJoined = false;
  for (const decoder of chain) {
    if (isJoined && decoder.wantsWhole) steps.push(whole);
    steps.push(decoder);
    isJoined ||= decoder.joins;
  }
  return () => {
    let text = "";
    let sink: Sink = (piece) => {
      text += piece;
    };
    const started: Step[] = [];
    for (const decoder of [...steps].reverse()) {
      const step = decoder.start(sink);
      started.unshift(step);
      sink = (piece, isStart) => step.push(piece, isStart);
    }
    const first = sink;
    const taken = () => {
      const piece = text;
      text = "";
      return piece;
    };
    return {
      push(token) {
        first(token, true);
        return taken();
      },
      end() {
        for (const step of started) step.end();
        return taken();
      },
    };
  };
}

/** Removes the spaces that WordPiece's decoding leaves before punctuation. Source: transformers, `clean_up_tokenization`. */
export function cleaned(inner: TextStream): TextStream {
  // No replacement begins or ends within other characters than these, so a text may be cut in front of a run of them.
  let held = "";
  return {
    push(token) {
      const text = held + inner.push(token);
      let cut = text.length;
      while (cut > 0 && " .?!,'ntmsver".includes(text[cut - 1]!)) cut--;
      held = text.slice(cut);
      return replaceEach(text.slice(0, cut), transformersCleanup);
    },
    end: () => replaceEach(held + inner.end(), transformersCleanup),
  };
}

const punctuationCleanup = [
  [" .", "."],
  [" ?", "?"],
  [" !", "!"],
  [" ,", ","],
  [" ' ", "'"],
  [" n't", "n't"],
  [" 'm", "'m"],
] as const;
const contractionCleanup = [
  [" 's", "'s"],
  [" 've", "'ve"],
  [" 're", "'re"],
] as const;
const transformersCleanup = [...punctuationCleanup, ...contractionCleanup];
const tokenizersCleanup = [...punctuationCleanup, [" do not", " don't"] as const, ...contractionCleanup];

function replaceEach(text: string, replacements: readonly (readonly [string, string])[]): string {
  return replacements.reduce((result, [from, to]) => result.replaceAll(from, to), text);
}

function joinedBySpaces(): TextStream {
  let isFirst = true;
  return {
    push(token) {
      const text = isFirst ? token : ` ${token}`;
      isFirst = false;
      return text;
    },
    end: () => "",
  };
}

/** Puts the pieces of each token together. */
const whole: Decoder = {
  wantsWhole: false,
  joins: false,
  start(next) {
    let token: string | undefined;
    const flush = () => {
      if (token !== undefined) next(token, true);
    };
    return {
      push(piece, isStart) {
        if (isStart) flush();
        token = isStart ? piece : token + piece;
      },
      end: flush,
    };
  },
};

/** A decoder that looks at each token by itself. `index`: of the token in the sequence. */
function eachToken(rewrite: (token: string, index: number) => string): Decoder {
  return {
    wantsWhole: true,
    joins: false,
    start(next) {
      let index = 0;
      return { push: (token) => next(rewrite(token, index++), true), end: () => {} };
    },
  };
}

/** A decoder that looks at each character by itself. `isFirst`: in the first token. */
function eachCharacter(character: string, replacement: (isFirst: boolean) => string): Decoder {
  return {
    wantsWhole: false,
    joins: false,
    start(next) {
      let index = -1;
      return {
        push(piece, isStart) {
          if (isStart) index++;
          next(
            piece.replaceAll(character, () => replacement(index === 0)),
            isStart,
          );
        },
        end: () => {},
      };
    },
  };
}

const maxGrowth = 2 ** 20;

const kinds: Readonly<Record<string, (stage: Stage) => readonly Decoder[]>> = {
  BPEDecoder(stage) {
    const suffix = stage.text("suffix");
    return [
      {
        wantsWhole: true,
        joins: false,
        start(next) {
          let held: string | undefined;
          const flush = (space: string) => {
            if (held !== undefined) next(suffix === "" ? held : held.replaceAll(suffix, () => space), true);
          };
          return {
            push(token) {
              flush(" ");
              held = token;
            },
            end: () => flush(""),
          };
        },
      },
    ];
  },
  ByteFallback() {
    return [
      {
        wantsWhole: true,
        joins: false,
        start(next) {
          let bytes: number[] = [];
          const flush = () => {
            if (bytes.length === 0) return;
            const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
            // One byte that is no UTF-8 spoils the whole run.
            if (isUtf8(bytes)) next(text, true);
            else for (const _ of bytes) next("\uFFFD", true);
            bytes = [];
          };
          return {
            push(token) {
              const byte = /^<0x([0-9a-fA-F]{2})>$/.exec(token);
              if (byte !== null) {
                bytes.push(Number.parseInt(byte[1]!, 16));
                return;
              }
              flush();
              next(token, true);
            },
            end: flush,
          };
        },
      },
    ];
  },
  ByteLevel(stage) {
    stage.ignore("add_prefix_space", "trim_offsets", "use_regex");
    return [
      {
        wantsWhole: true,
        joins: true,
        start(next) {
          const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
          let isStart = true;
          const give = (text: string) => {
            next(text, isStart);
            isStart = false;
          };
          return { push: (token) => give(utf8.decode(unspellBytes(token), { stream: true })), end: () => give(utf8.decode()) };
        },
      },
    ];
  },
  Fuse() {
    return [
      {
        wantsWhole: false,
        joins: true,
        start(next) {
          let isStart = true;
          return {
            push(piece) {
              next(piece, isStart);
              isStart = false;
            },
            end: () => {},
          };
        },
      },
    ];
  },
  Metaspace(stage) {
    const { replacement, scheme } = metaspaceOptions(stage);
    stage.ignore("split");
    return [eachCharacter(replacement, (isFirst) => (isFirst && scheme !== "never" ? "" : " "))];
  },
  Replace(stage) {
    const content = stage.text("content");
    const literal = stage.literal();
    if (literal !== undefined && [...literal].length === 1 && content.length <= 64)
      return [eachCharacter(literal, () => content)];
    const pattern = stage.pattern();
    return [
      eachToken((token) => {
        let text = "";
        forEachMatch(token, pattern, (start, end, isMatch) => {
          text += isMatch ? content : token.slice(start, end);
          if (text.length > 64 * token.length + maxGrowth) stage.fail("it makes far more of a token than there was.");
        });
        return text;
      }),
    ];
  },
  Strip(stage) {
    const content = stage.character("content");
    const [start, stop] = [stage.count("start"), stage.count("stop")];
    return [
      {
        wantsWhole: false,
        joins: false,
        start(next) {
          let mayCut = 0; // characters that may still be cut in front
          let held = ""; // what may be the end of the token
          return {
            push(piece, isStart) {
              if (isStart) {
                next("", true);
                mayCut = start;
                held = "";
              }
              let text = held + piece;
              for (; mayCut > 0 && text.startsWith(content); mayCut--) text = text.slice(content.length);
              if (text !== "") mayCut = 0;
              let cut = text.length;
              for (let count = 0; count < stop && text.slice(0, cut).endsWith(content); count++) cut -= content.length;
              held = text.slice(cut);
              next(text.slice(0, cut), false);
            },
            end: () => {},
          };
        },
      },
    ];
  },
  WordPiece(stage) {
    const prefix = stage.text("prefix");
    const cleans = stage.boolean("cleanup");
    return [
      eachToken((token, index) => {
        const text = index === 0 ? token : token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`;
        return cleans ? replaceEach(text, tokenizersCleanup) : text;
      }),
    ];
  },
  Sequence(stage) {
    return stage.stages("decoders").flatMap((each) => each.build(kinds));
  },
};

function isUtf8(bytes: readonly number[]): boolean {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(bytes));
    return true;
  } catch {
    return false;
  }
}
