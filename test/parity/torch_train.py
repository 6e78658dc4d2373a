"""Trains a causal language model with PyTorch (and PEFT) on given token batches, and prints what every step measured.

    python torch_train.py --model DIR --method full --batches batches.json --learning-rate 1e-3 …
    python torch_train.py --model DIR --method lora --adapter DIR --batches batches.json …

batches.json: {"steps": [{"micro_batches": [[{"ids": […], "supervised": […]}, …], …]}, …]}. `supervised` is 1 where a token is a label, as in
attune's Example. Each sequence runs by itself, without padding. The loss of a step is the sum over all its supervised tokens divided by
their number. --adapter is a PEFT folder to start from; dropout is off. Decay follows Hugging Face's Trainer: matrices only, no norms.
Prints JSON: {"loss": […], "grad_norm": […], "lr": […], "tokens": […]}; grad_norm is the norm before clipping.
"""
import argparse
import json

import torch
from transformers import AutoModelForCausalLM, get_scheduler


def load(model_dir, adapter_dir=None, dtype=torch.float32):
    """The model in `dtype`; with an adapter, a PEFT model of which only the adapter trains."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, attn_implementation="eager")
    if adapter_dir is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter_dir, is_trainable=True)
    return model


def loss_sum(model, sequence):
    """−log p summed over the supervised tokens, and their number."""
    ids = torch.tensor([sequence["ids"]])
    labels = torch.tensor(sequence["supervised"])[1:].bool()
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits[labels], ids[0, 1:][labels], reduction="sum"), int(labels.sum())


def parameter_groups(model, weight_decay):
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def train(model, steps, learning_rate, schedule="cosine", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0):
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    groups = parameter_groups(model, weight_decay)
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=warmup_steps, num_training_steps=len(steps))
    measured = {"loss": [], "grad_norm": [], "lr": [], "tokens": []}
    for step in steps:
        sequences = [sequence for micro_batch in step["micro_batches"] for sequence in micro_batch]
        count = sum(sum(sequence["supervised"][1:]) for sequence in sequences)
        total = 0.0
        for sequence in sequences:
            loss, _ = loss_sum(model, sequence)
            (loss / count).backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        measured["loss"].append(total / count)
        measured["grad_norm"].append(norm.item())
        measured["lr"].append(optimizer.param_groups[0]["lr"])
        measured["tokens"].append(sum(len(sequence["ids"]) for sequence in sequences))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return measured


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--method", choices=["lora", "full"], required=True)
    parser.add_argument("--adapter", help="PEFT folder that LoRA starts from")
    parser.add_argument("--batches", required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--schedule", default="cosine", choices=["cosine", "linear", "constant", "constant_with_warmup"])
    parser.add_argument("--warmup-steps", type=int, default=0)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--save", help="folder for the trained model or adapter")
    options = parser.parse_args()
    if (options.method == "lora") != (options.adapter is not None):
        parser.error("--method lora needs --adapter, and only it takes one")
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    model = load(options.model, options.adapter)
    with open(options.batches, encoding="utf-8") as file:
        steps = json.load(file)["steps"]
    settings = (options.learning_rate, options.schedule, options.warmup_steps, options.weight_decay, options.max_grad_norm)
    measured = train(model, steps, *settings)
    if options.save is not None:
        model.save_pretrained(options.save)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
