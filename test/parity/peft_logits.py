"""Prints the logits of a model, with an adapter that real PEFT loads if one is given, as JSON.

    python peft_logits.py --model DIR [--adapter DIR] (--ids 1,2,3 … | --ids-file ids.json) [--last N] [--out logits.safetensors]

ids.json is a list of token lists. Each sequence runs by itself in f32. --last keeps only the last N positions of each.
Prints {"logits": [(T, V) of each sequence]}; with --out, the same as tensors named logits.0, logits.1, … and nothing is printed.
"""
import argparse
import json

import torch
from safetensors.torch import save_file
from torch_train import load


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--ids", action="append", default=[])
    parser.add_argument("--ids-file")
    parser.add_argument("--last", type=int, default=0)
    parser.add_argument("--out")
    options = parser.parse_args()
    sequences = [[int(number) for number in ids.split(",")] for ids in options.ids]
    if options.ids_file is not None:
        with open(options.ids_file, encoding="utf-8") as file:
            sequences += json.load(file)
    if not sequences:
        parser.error("no token ids: give --ids or --ids-file")

    model = load(options.model, options.adapter).eval()
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -options.last :] for ids in sequences]
    if options.out is not None:
        save_file({f"logits.{i}": part.contiguous() for i, part in enumerate(logits)}, options.out)
    else:
        print(json.dumps({"logits": [part.tolist() for part in logits]}))


if __name__ == "__main__":
    main()
