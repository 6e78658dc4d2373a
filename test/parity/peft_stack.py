"""Logits of an adapter that was trained over others, as its card has PEFT load it: every one below is merged, then it is put on.

    python peft_stack.py BASE FOLDER '["base_adapters/1", …]' IDS.json prints the logits of each sequence as JSON, and PEFT's warnings.
"""
import json
import sys
import warnings

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, folder, below, ids_path = sys.argv[1:]
with open(ids_path, encoding="utf-8") as file:
    sequences = json.load(file)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    for name in json.loads(below):
        model = PeftModel.from_pretrained(model, f"{folder}/{name}").merge_and_unload()
    model = PeftModel.from_pretrained(model, folder).eval()
with torch.no_grad():
    logits = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].flatten().tolist() for ids in sequences]
print(json.dumps({"logits": logits, "warnings": [str(warning.message) for warning in caught]}))
