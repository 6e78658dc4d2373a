/**
 * How GGUF files name architectures and tensors, and in which order they store the rows of queries and keys.
 * Source: llama.cpp's convert_hf_to_gguf.py and gguf-py/gguf/tensor_mapping.py.
 */

/** What `general.architecture` may be, and how Hugging Face calls the class. Mistral's files say "llama". */
export const ggufArchitectures: ReadonlyMap<string, string> = new Map([
  ["llama", "LlamaForCausalLM"],
  ["qwen2", "Qwen2ForCausalLM"],
  ["qwen3", "Qwen3ForCausalLM"],
]);

const plainNames: ReadonlyMap<string, string> = new Map([
  ["token_embd", "model.embed_tokens"],
  ["output_norm", "model.norm"],
  ["output", "lm_head"],
]);

const blockNames: ReadonlyMap<string, string> = new Map([
  ["attn_norm", "input_layernorm"],
  ["attn_q", "self_attn.q_proj"],
  ["attn_k", "self_attn.k_proj"],
  ["attn_v", "self_attn.v_proj"],
  ["attn_output", "self_attn.o_proj"],
  ["attn_q_norm", "self_attn.q_norm"],
  ["attn_k_norm", "self_attn.k_norm"],
  ["ffn_norm", "post_attention_layernorm"],
  ["ffn_gate", "mlp.gate_proj"],
  ["ffn_up", "mlp.up_proj"],
  ["ffn_down", "mlp.down_proj"],
]);

const inGguf: ReadonlyMap<string, string> = new Map([...plainNames, ...blockNames].map(([gguf, name]) => [name, gguf]));

/** Holds one divisor per rotated pair instead of the parameters of llama3's RoPE scaling. */
export const ropeFactorsName = "rope_freqs.weight";

/** A name that is in no table stays as it is: who loads the model then sees a leftover tensor and can say so. */
export function huggingFaceName(ggufName: string): string {
  const match = /^(?:blk\.(0|[1-9][0-9]*)\.)?([a-z_]+)\.(weight|bias)$/.exec(ggufName);
  if (!match) return ggufName;
  const [, layer, part, kind] = match;
  const name = layer === undefined ? plainNames.get(part!) : blockNames.get(part!);
  if (name === undefined) return ggufName;
  return layer === undefined ? `${name}.${kind}` : `model.layers.${layer}.${name}.${kind}`;
}

/** The module that Hugging Face calls `path`, such as `model.layers.3.mlp.up_proj`; undefined if GGUF has no name for it. */
export function ggufModuleName(path: string): string | undefined {
  const match = /^model\.layers\.(0|[1-9][0-9]*)\.(.+)$/.exec(path);
  if (match === null) return inGguf.get(path);
  const name = inGguf.get(match[2]!);
  return name && `blk.${match[1]}.${name}`;
}

/** As much of a config as says which heads the rows of queries and keys belong to. */
export interface Heads extends Readonly<Record<string, unknown>> {
  readonly model_type: string;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
}

/** How many heads the rows of this module's weight and bias belong to, if GGUF interleaves them: q and k of Llama. */
export function interleavedHeads(path: string, config: Heads): number | undefined {
  if (config.model_type !== "llama" && config.model_type !== "mistral") return undefined;
  const projection = /\.self_attn\.([qk])_proj$/.exec(path)?.[1];
  if (projection === undefined) return undefined;
  return projection === "q" ? config.num_attention_heads : config.num_key_value_heads;
}

/**
 * llama.cpp rotates neighbouring rows of a head (2i, 2i + 1), Hugging Face row i and row i + D/2. Moves whole rows from the one order to
 * the other, which works for block types too, as a block never spans two rows.
 */
export function reorderRows(data: Uint8Array, rows: number, heads: number, to: "gguf" | "huggingFace"): Uint8Array {
  const rowBytes = data.length / rows;
  const headDim = rows / heads;
  const half = headDim / 2;
  const result = new Uint8Array(data.length);
  for (let row = 0; row < rows; row++) {
    const within = row % headDim;
    const separated = row - within + (within % 2) * half + Math.floor(within / 2);
    const [from, target] = to === "huggingFace" ? [row, separated] : [separated, row];
    result.set(data.subarray(from * rowBytes, (from + 1) * rowBytes), target * rowBytes);
  }
  return result;
}
