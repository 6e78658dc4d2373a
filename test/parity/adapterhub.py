"""AdapterHub's `adapters` beside attune. Each command works on a model folder of transformers, in f32.

    python adapterhub.py logits --model DIR --adapter DIR --ids-file ids.json --out logits.safetensors
        The logits of each token list with an adapter that the library loads: logits.0, logits.1, …, (T, V), or of a classifier (classes). A key
        of the adapter that is missing or left over is an error.
    python adapterhub.py save --model DIR --config config.json --out DIR
        A new adapter with random weights, as the library saves it. config.json: settings of its BnConfig. --with-head saves the head as well.
"""
import argparse
import json

import adapters
import torch
import transformers
from adapters import BnConfig
from safetensors.torch import save_file


def load(model_dir):
    config = transformers.AutoConfig.from_pretrained(model_dir)
    if rope := getattr(config, "rope_parameters", None):  # as transformers 5 writes them, and none before it reads
        whole = rope.get("full_attention", rope)
        config.rope_theta = whole["rope_theta"]
        if whole["rope_type"] != "default":
            config.rope_scaling = {key: value for key, value in whole.items() if key != "rope_theta"}
        if "sliding_attention" in rope:
            config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
    model_class = getattr(transformers, config.architectures[0])
    model = model_class.from_pretrained(model_dir, config=config, dtype=torch.float32, attn_implementation="eager")
    adapters.init(model)
    return model.eval()


def logits(model, sequences, last=0):
    """Every sequence runs by itself; only the last positions, if a number is given."""
    with torch.no_grad():
        whole = [model(input_ids=torch.tensor([ids])).logits[0][-last:] for ids in sequences]
    return {f"logits.{i}": part.contiguous() for i, part in enumerate(whole)}


def load_adapter(model, folder):
    found = {}
    model.load_adapter(folder, load_as="loaded", set_active=True, use_safetensors=True, loading_info=found)
    assert not found.get("missing_keys") and not found.get("unexpected_keys"), found


def random_adapter(model, config, seed=0):
    """An adapter whose every weight is far enough from its start that nothing can be left out unseen."""
    torch.manual_seed(seed)
    model.add_adapter("made", config=BnConfig.from_dict(config), set_active=True)
    for name, parameter in model.named_parameters():
        if ".made." in name:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["logits", "save"])
    parser.add_argument("--model")
    parser.add_argument("--adapter")
    parser.add_argument("--ids-file")
    parser.add_argument("--config")
    parser.add_argument("--with-head", action="store_true")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    model = load(options.model)
    if options.command == "save":
        with open(options.config, encoding="utf-8") as file:
            random_adapter(model, json.load(file))
        model.save_adapter(options.out, "made", with_head=options.with_head, use_safetensors=True)
        return
    load_adapter(model, options.adapter)
    with open(options.ids_file, encoding="utf-8") as file:
        save_file(logits(model, json.load(file)), options.out)


if __name__ == "__main__":
    main()
