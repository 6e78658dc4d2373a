"""Does with real PEFT what test/parity/virtual-tokens.test.ts asks for, all in one process.

    python peft_virtual_tokens.py --model DIR --work work.json --out DIR

work.json: {"ids": [[…], …], "load": {name: adapter folder}, "make": {name: [config class, its arguments]}}. Everything is in f32. Writes
logits.safetensors: `load.NAME` and `make.NAME` are the logits of all ids, one sequence after the other. An adapter that is made gets random
weights and is saved under OUT/NAME, with its encoder's weights beside it as attune keeps them.
"""
import argparse
import inspect
import json
import os

import peft
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


def base(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def classifier(folder, labels):
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", num_labels=labels
    ).eval()
    forward = model.forward
    if "past_key_values" not in inspect.signature(forward).parameters:
        # PEFT 0.21 looks for this name among the arguments; transformers 5.24 calls it `cache`.
        model.forward = lambda past_key_values=None, **others: forward(cache=past_key_values, **others)
    return model


def logits_of(model, sequences):
    """Those of the tokens alone, or a classifier's: PEFT returns those of virtual tokens before embeddings as well."""
    model.eval()
    with torch.no_grad():
        parts = [model(input_ids=torch.tensor([ids])).logits for ids in sequences]
    return torch.cat([part[0, -len(ids) :] if part.dim() == 3 else part for part, ids in zip(parts, sequences)]).contiguous()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    with open(options.work, encoding="utf-8") as file:
        work = json.load(file)
    logits = {}

    for name, folder in work["load"].items():
        stored = load_file(os.path.join(folder, "adapter_model.safetensors"))
        head = stored.get("base_model.score.weight")
        model = PeftModel.from_pretrained(base(options.model) if head is None else classifier(options.model, len(head)), folder)
        held = get_peft_model_state_dict(model)
        assert held.keys() == stored.keys() and all(torch.equal(held[key], stored[key]) for key in held), (held.keys(), stored.keys())
        logits[f"load.{name}"] = logits_of(model, work["ids"])

    for name, (kind, arguments) in work["make"].items():
        torch.manual_seed(len(name))
        model = get_peft_model(base(options.model), getattr(peft, kind)(task_type="CAUSAL_LM", **arguments))
        encoder = model.prompt_encoder["default"]
        for parameter in encoder.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
        logits[f"make.{name}"] = logits_of(model, work["ids"])
        folder = os.path.join(options.out, name)
        model.save_pretrained(folder)
        slot = "prefix" if kind == "PrefixTuningConfig" else "prompt"
        weights = {f"{slot}.{key}": value.contiguous() for key, value in encoder.state_dict().items()}
        save_file(weights, os.path.join(options.out, f"{name}.encoder.safetensors"))

    save_file(logits, os.path.join(options.out, "logits.safetensors"))


if __name__ == "__main__":
    main()
