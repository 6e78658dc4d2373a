"""Last logits of a Hugging Face folder after some tokens: export.py FOLDER IDS.json prints a list for each sequence, as JSON."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, ids_path = sys.argv[1:]
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
sequences = json.load(open(ids_path))
logits = []
with torch.no_grad():
    for ids in sequences["ids"]:
        logits.append(model(torch.tensor([ids])).logits[0, -1].tolist())
chats = [tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False) for chat in sequences["chats"]]
print(json.dumps({"logits": logits, "chats": chats}))
