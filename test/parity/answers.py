"""The likeliest tokens after each prompt, by transformers in the type that it chooses: answers.py FOLDER PROMPTS.json prints them as JSON.

PROMPTS.json: {"prompts": [[…], …], "tokens": how many at most}.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM

folder, prompts_path = sys.argv[1:]
torch.set_num_threads(2)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
with open(prompts_path, encoding="utf-8") as file:
    asked = json.load(file)
answers = []
with torch.no_grad():
    for prompt in asked["prompts"]:
        ids = torch.tensor([prompt])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=asked["tokens"], do_sample=False)
        answers.append(out[0, len(prompt) :].tolist())
print(json.dumps({"dtype": str(model.dtype), "answers": answers}))
