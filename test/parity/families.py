"""Writes the logits of models that transformers loads, with an adapter that PEFT loads if one is given.

    python families.py jobs.json

jobs.json: {"ids": [[…], …], "jobs": [{"model": DIR, "adapter": DIR or null, "out": FILE}, …]}. Each sequence runs by itself in f32; FILE then has
tensors logits.0, logits.1, … of (T, V).
"""
import json
import sys

import torch
from safetensors.torch import save_file
from torch_train import load

with open(sys.argv[1], encoding="utf-8") as file:
    task = json.load(file)
for job in task["jobs"]:
    model = load(job["model"], job["adapter"]).eval()
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in task["ids"]]
    save_file({f"logits.{i}": part.contiguous() for i, part in enumerate(logits)}, job["out"])
