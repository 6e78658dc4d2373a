import { namedTemplate } from "../templates.js";
import { byteCharacters } from "./byte-characters.js";
import { Tokenizer } from "./tokenizer.js";

/** Control tokens of the byte tokenizer, ids 256 and up. */
const controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/**
 * A tokenizer with one token for each byte, and ChatML: for models that are made from nothing, and for looking at data where no
 * model is at hand. V = 259.
 */
export function byteTokenizer(): Tokenizer {
  const roles = { bos_token: "<|im_start|>", eos_token: "<|im_end|>", pad_token: "<|endoftext|>" };
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false };
  const added = controls.map((content, i) => ({
    id: 256 + i,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }));
  const json = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: "BPE", vocab: Object.fromEntries(byteCharacters.map((character, byte) => [character, byte])), merges: [] },
  };
  return new Tokenizer({
    json,
    roles,
    stopIds: [256, 258],
    chatTemplate: namedTemplate("chatml"),
    where: "the byte tokenizer",
    files: [
      { name: "tokenizer.json", contents: JSON.stringify(json) },
      {
        name: "tokenizer_config.json",
        contents: `${JSON.stringify({ ...roles, clean_up_tokenization_spaces: false, tokenizer_class: "PreTrainedTokenizerFast" }, null, 2)}\n`,
      },
      { name: "special_tokens_map.json", contents: `${JSON.stringify(roles, null, 2)}\n` },
    ],
  });
}
