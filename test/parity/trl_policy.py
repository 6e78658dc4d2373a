"""Trains with TRL's GRPOTrainer or RLOOTrainer on answers that are given, and prints what every step measured.

    python trl_policy.py --model DIR --stage grpo --rounds rounds.json --settings settings.json

rounds.json: [[{"prompt": [ids], "answer": [ids], "reward": number}, …], …], a list for each roll-out, answers of a prompt one after the other.
Only tokenizing, generating and judging are replaced; advantages, losses and updates are TRL's.
Prints JSON: {"trl": version, "loss": […], "grad_norm": […], "kl": […]}.
"""
import argparse
import json
import tempfile

import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

parser = argparse.ArgumentParser()
for name in ["--model", "--stage", "--rounds", "--settings"]:
    parser.add_argument(name, required=True)
args = parser.parse_args()
rounds = json.load(open(args.rounds))
settings = json.load(open(args.settings))
trainer_class, config_class = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[args.stage]

tokenizer = AutoTokenizer.from_pretrained(args.model)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32", attn_implementation="eager")
size = len(rounds[0])
generations = settings["num_generations"]
config = config_class(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=size, gradient_accumulation_steps=1, steps_per_generation=1,
    max_steps=len(rounds) * settings.get("num_iterations", 1), lr_scheduler_type="constant", logging_steps=1, report_to="none",
    save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False, shuffle_dataset=False, weight_decay=0.0,
    disable_tqdm=True, **settings,
)
given = {"round": -1}


class Given(trainer_class):
    def _tokenize_prompts(self, prompts):
        given["round"] += 1
        return [row["prompt"] for row in rounds[given["round"]]], None, {}

    def _generate_single_turn(self, *_, **__):
        answers = [row["answer"] for row in rounds[given["round"]]]
        return (answers, None) if args.stage == "grpo" else answers


def reward(completions, **_):
    return [row["reward"] for row in rounds[given["round"]]]


prompts = Dataset.from_list([{"prompt": "x"}] * (size // generations * len(rounds)))
trainer = Given(model=model, reward_funcs=reward, args=config, train_dataset=prompts, processing_class=tokenizer)
trainer.train()
log = [entry for entry in trainer.state.log_history if "loss" in entry]
print(json.dumps({"trl": trl.__version__, **{key: [entry.get(key) for entry in log] for key in ("loss", "grad_norm", "kl")}}))
