"""Makes what bitsandbytes.test.ts reads: bnb_model.py FOLDER. Prints nothing that matters."""

import sys
from pathlib import Path

import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=256, intermediate_size=320, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
LlamaForCausalLM(config).save_pretrained(folder / "base")
for kind in ("nf4", "fp4"):
    for is_double in (True, False):
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_use_double_quant=is_double,
            bnb_4bit_compute_dtype=torch.float32,
        )
        model = LlamaForCausalLM.from_pretrained(
            folder / "base", quantization_config=quantization, dtype=torch.float32, device_map="cpu"
        )
        out = folder / f"{kind}-{'double' if is_double else 'plain'}"
        model.save_pretrained(out)
        expanded = {
            name: F.dequantize_4bit(weight.data, weight.quant_state).contiguous()
            for name, weight in model.named_parameters()
            if hasattr(weight, "quant_state")
        }
        save_file(expanded, out / "expanded.safetensors")
