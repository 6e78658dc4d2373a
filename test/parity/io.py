"""The Python side of io.test.ts: safetensors, gguf, peft, transformers and huggingface_hub on files that attune wrote, and the other way."""

import json
import os
import struct
import sys


def judge(folder):
    """Which of the files 0, 1, 2, ... does the Rust library accept? Prints one character each."""
    from safetensors import SafetensorError, deserialize

    verdicts = []
    with open(os.path.join(folder, "cases"), "rb") as file:
        while size := file.read(4):
            data = file.read(struct.unpack("<I", size)[0])
            try:
                deserialize(data)
                verdicts.append("1")
            except SafetensorError:
                verdicts.append("0")
    print("".join(verdicts))


def write_safetensors(folder):
    """The same tensors as io.test.ts writes, by the reference library."""
    import torch
    from safetensors.torch import save_file

    tensors = {
        "b.half": torch.tensor([1.0, -2.0, 3.0], dtype=torch.float16),
        "a.bf16": torch.tensor([[0.5, 4.0]], dtype=torch.bfloat16),
        "z.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "é": torch.tensor([7.0]),
    }
    save_file(tensors, os.path.join(folder, "python.safetensors"), metadata={"format": "pt"})


def write_gguf(folder):
    """A small Llama as llama.cpp's converter would write it, and its tensors in Hugging Face's order."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(1)
    heads, kv_heads, hidden, ffn, vocab = 4, 2, 256, 512, 32
    head_dim = hidden // heads
    writer = gguf.GGUFWriter(os.path.join(folder, "llama.gguf"), "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)
    writer.add_token_list(["a"] * vocab)
    types = gguf.GGMLQuantizationType
    shapes = {
        "token_embd": (types.Q6_K, (vocab, hidden)),
        "blk.0.attn_q": (types.Q8_0, (hidden, hidden)),
        "blk.0.attn_k": (types.F16, (kv_heads * head_dim, hidden)),
        "blk.0.attn_v": (types.Q4_0, (kv_heads * head_dim, hidden)),
        "blk.0.attn_output": (types.Q4_1, (hidden, hidden)),
        "blk.0.ffn_gate": (types.Q5_0, (ffn, hidden)),
        "blk.0.ffn_up": (types.Q5_1, (ffn, hidden)),
        "blk.0.ffn_down": (types.BF16, (hidden, ffn)),
        "blk.0.attn_norm": (types.F32, (hidden,)),
        "blk.0.ffn_norm": (types.F32, (hidden,)),
        "output_norm": (types.F32, (hidden,)),
    }
    for name, (dtype, shape) in shapes.items():
        weights = rng.standard_normal(shape).astype(np.float32)
        if dtype == types.Q6_K:  # gguf-py cannot quantize to K types; the blocks need not mean anything here
            data = rng.integers(0, 256, (shape[0], shape[1] // 256 * 210), dtype=np.uint8)
        else:
            data = gguf.quantize(weights, dtype) if dtype != types.F32 else weights
        natural = data
        if name.endswith(("attn_q", "attn_k")):
            n = heads if name.endswith("q") else kv_heads
            data = natural.reshape(n, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(natural.shape)  # LlamaModel.permute
        writer.add_tensor(name + ".weight", np.ascontiguousarray(data), raw_dtype=dtype)
        natural.tofile(os.path.join(folder, name + ".raw"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_folder(folder):
    """Loads the sharded model that attune wrote with transformers; prints the sum of its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    problems = {key: sorted(map(str, value)) for key, value in info.items() if value}
    print(json.dumps({"sum": sum(p.double().sum().item() for p in model.parameters()), "problems": problems}))


def find_in_hub_cache(cache, repository):
    """Where does huggingface_hub find the snapshot that attune downloaded?"""
    from huggingface_hub import scan_cache_dir, snapshot_download

    path = snapshot_download(repository, cache_dir=cache, local_files_only=True)
    warnings = [str(warning) for warning in scan_cache_dir(cache).warnings]
    print(json.dumps({"path": path, "warnings": warnings}))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
