"""Reward models by TRL 1.16, transformers and PEFT.

    python trl_reward.py train --model DIR --rows rows.json --out DIR     trains DIR with TRL's RewardTrainer, full, and prints what every step measured
    python trl_reward.py scores --model DIR [--adapter DIR] --rows rows.json      prints the scores of every row, by the sequence classifier of one output

rows.json: {"rows": [{"chosen_ids": […], "rejected_ids": […], "margin": 0.5}, …], "batch": 2, "learning_rate": 1e-3, "center": 0.01}. `train` first saves the
sequence classifier that it begins with to --out: its head is drawn by transformers.
"""
import argparse
import json

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback


def classifier(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32, attn_implementation="eager")


def train(options, told):
    import trl
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    transformers.set_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(told["pad"])
    model = classifier(options.model)
    model.config.problem_type = "regression"
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    model.config.problem_type = None
    steps = []

    class Record(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in logs:
                steps.append({k: float(v) for k, v in logs.items() if isinstance(v, (int, float))})

    config = RewardConfig(
        output_dir=options.out + "-trl",
        per_device_train_batch_size=told["batch"],
        learning_rate=told["learning_rate"],
        lr_scheduler_type="constant",
        num_train_epochs=1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        center_rewards_coefficient=told["center"],
        gradient_checkpointing=False,
        bf16=False,
        max_grad_norm=1.0,
        weight_decay=0.0,
        use_cpu=True,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
    )
    trainer = RewardTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(told["rows"]), processing_class=tokenizer, callbacks=[Record()]
    )
    trainer.train()
    print("\n" + json.dumps({"trl": trl.__version__, "steps": steps}))


def scores(options, told):
    model = classifier(options.model)
    if options.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, options.adapter)
    model.eval()
    model.config.pad_token_id = told["pad"]
    with torch.no_grad():
        found = [
            [model(input_ids=torch.tensor([row[side]])).logits.item() for side in ("chosen_ids", "rejected_ids")] for row in told["rows"]
        ]
    print("\n" + json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["train", "scores"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--rows", required=True)
    parser.add_argument("--out")
    options = parser.parse_args()
    with open(options.rows, encoding="utf-8") as file:
        told = json.load(file)
    (train if options.what == "train" else scores)(options, told)


if __name__ == "__main__":
    main()
