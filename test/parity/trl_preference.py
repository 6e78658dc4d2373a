"""Trains a PEFT adapter with TRL's own trainers on rows that are token ids already, and prints what every step measured.

    python trl_preference.py --model DIR --adapter DIR --rows rows.json --stage dpo --config '{"loss_type": ["ipo"]}' --batch 4 --learning-rate 1e-3

rows.json: [{"prompt": […], "chosen": […], "rejected": […]}, …], or for kto [{"prompt": […], "answer": […], "label": true}, …]; they are taken in order, --batch a
step. Stages: dpo, kto, orpo, cpo. Prints JSON: {"trl": version, "loss": […], "grad_norm": […], "metrics": [{…}, …]}; grad_norm is the norm before clipping.
"""

import argparse
import json
import os
import tempfile

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import trl
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--adapter", required=True)
parser.add_argument("--rows", required=True)
parser.add_argument("--stage", choices=["dpo", "kto", "orpo", "cpo"], required=True)
parser.add_argument("--config", default="{}")
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--learning-rate", type=float, required=True)
options = parser.parse_args()
torch.set_num_threads(2)
with open(options.rows) as file:
    rows = json.load(file)

trainer_class, config_class = {
    "dpo": (DPOTrainer, DPOConfig), "kto": (KTOTrainer, KTOConfig), "orpo": (ORPOTrainer, ORPOConfig), "cpo": (CPOTrainer, CPOConfig),
}[options.stage]


def given_rows():
    if options.stage == "dpo":
        return [dict(prompt_ids=r["prompt"], chosen_ids=r["chosen"], rejected_ids=r["rejected"]) for r in rows]
    if options.stage == "kto":
        found = [dict(prompt_ids=r["prompt"], completion_ids=r["answer"], label=r["label"]) for r in rows]
        for start in range(0, len(found), options.batch):
            batch = found[start : start + options.batch]
            for i, row in enumerate(batch):
                row["KL_completion_ids"] = batch[i - 1]["completion_ids"]
        return found
    return [dict(prompt=str(i), chosen="c", rejected="r") for i in range(len(rows))]


def tokenized(self, feature, model=None):
    """What tokenize_row of ORPO's and CPO's trainers would make of a row."""
    row = rows[int(feature["prompt"])]
    batch = dict(prompt_input_ids=row["prompt"], prompt_attention_mask=[1] * len(row["prompt"]))
    for side in ("chosen", "rejected"):
        ids = row["prompt"] + row[side]
        batch[f"{side}_input_ids"] = ids
        batch[f"{side}_attention_mask"] = [1] * len(ids)
        batch[f"{side}_labels"] = [-100] * len(row["prompt"]) + row[side]
    return batch


measured = dict(trl=trl.__version__, loss=[], grad_norm=[], metrics=[])


class Trainer(trainer_class):
    if options.stage in ("dpo", "kto"):

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    else:
        tokenize_row = tokenized

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        measured["loss"].append((loss[0] if isinstance(loss, tuple) else loss).item())
        return loss

    def log(self, logs, *args, **kwargs):
        super().log(logs, *args, **kwargs)
        if "grad_norm" in logs:
            measured["grad_norm"].append(float(logs["grad_norm"]))
            measured["metrics"].append({k: float(v) for k, v in logs.items() if k == "kl" or k.startswith(("rewards/", "logps/"))})


tokenizer = AutoTokenizer.from_pretrained(options.model)
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
model = PeftModel.from_pretrained(model, options.adapter, is_trainable=True)
trainer = Trainer(
    model=model,
    args=config_class(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=options.batch, num_train_epochs=1, learning_rate=options.learning_rate,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, save_strategy="no", report_to="none",
        use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True, remove_unused_columns=False, **json.loads(options.config),
    ),
    train_dataset=Dataset.from_list(given_rows()),
    processing_class=tokenizer,
)
trainer.train()
print(json.dumps(measured))
