"""Does with real PEFT what test/parity/lora.test.ts asks for, all in one process.

    python peft_lora.py --model DIR --work work.json --out DIR

work.json: {"ids": [[…], …], "load": {name: adapter folder}, "make": {name: LoraConfig's arguments},
"train": {name: {"adapter": folder} or {"config": LoraConfig's arguments}, …}, "steps": […], "learning_rate": 1e-3,
"combine": {name: {"adapters": [folder, …], "weights": […], …}}, "patterns": {"keys": [[…], …], "paths": […]}}.

Everything is in f32. Writes logits.safetensors: `load.NAME`, `make.NAME`, `combine.NAME` are logits of all ids, one sequence after the other. An
adapter that is made or combined is saved under OUT/NAME. Prints {"train": {name: losses}, "notes": {name: keys that differ after loading},
"patterns": [for each list of keys, the key of each path; the path itself where there is none]}.
"""
import argparse
import json
import os

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch_train import train
from transformers import AutoModelForCausalLM


def base(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def logits_of(model, sequences):
    model.eval()
    with torch.no_grad():
        parts = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in sequences]
    return torch.cat(parts).contiguous()


def keys_that_differ(model, folder):
    """The keys of an adapter's file that PEFT does not hold just so after loading it, and those that it holds beside them."""
    held = get_peft_model_state_dict(model)
    stored = load_file(os.path.join(folder, "adapter_model.safetensors"))
    return [key for key in held.keys() | stored.keys() if key not in held or key not in stored or not torch.equal(held[key], stored[key])]


def disturb(model, generator):
    """Gives everything that trains other values, so that nothing is at its start."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += (0.1 if "lora_" in name else 0.02) * noise


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    with open(options.work, encoding="utf-8") as file:
        work = json.load(file)
    generator = torch.Generator().manual_seed(3)
    logits, notes, losses = {}, {}, {}

    for name, folder in work["load"].items():
        model = PeftModel.from_pretrained(base(options.model), folder)
        logits[f"load.{name}"] = logits_of(model, work["ids"])
        notes[name] = keys_that_differ(model, folder)

    for name, settings in work["make"].items():
        torch.manual_seed(1)
        model = get_peft_model(base(options.model), LoraConfig(task_type="CAUSAL_LM", **settings))
        disturb(model, generator)
        logits[f"make.{name}"] = logits_of(model, work["ids"])
        model.save_pretrained(os.path.join(options.out, name))

    for name, start in work["train"].items():
        if "adapter" in start:
            model = PeftModel.from_pretrained(base(options.model), start["adapter"], is_trainable=True)
        else:
            model = get_peft_model(base(options.model), LoraConfig(task_type="CAUSAL_LM", **start["config"]))
        losses[name] = train(model, work["steps"], work["learning_rate"], schedule="constant")["loss"]

    for name, combination in work["combine"].items():
        model = PeftModel.from_pretrained(base(options.model), combination["adapters"][0], adapter_name="0")
        for i, folder in enumerate(combination["adapters"][1:], start=1):
            model.load_adapter(folder, adapter_name=str(i))
        names = [str(i) for i in range(len(combination["adapters"]))]
        model.add_weighted_adapter(names, combination["weights"], "combined", **combination["arguments"])
        model.set_adapter("combined")
        logits[f"combine.{name}"] = logits_of(model, work["ids"])

    save_file(logits, os.path.join(options.out, "logits.safetensors"))
    patterns = [[get_pattern_key(keys, path) for path in work["patterns"]["paths"]] for keys in work["patterns"]["keys"]]
    print(json.dumps({"train": losses, "notes": notes, "patterns": patterns}))


if __name__ == "__main__":
    main()
