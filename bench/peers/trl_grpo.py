"""TRL's GRPOTrainer with PEFT LoRA: completions and tokens per second of whole steps (rollout, reference, update), and peak memory. Prints one JSON line.

--dump FILE writes the prompts of each step, a prompt a line, as token ids: for bench/policy.ts, which answers the same prompts in the same order.
"""
import argparse, json, resource, tempfile, time
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

a = argparse.ArgumentParser()
a.add_argument("--model", required=True)
a.add_argument("--data", required=True, help="Alpaca rows; the instructions are the prompts")
a.add_argument("--prompts", type=int, default=2, help="prompts a step")
a.add_argument("--generations", type=int, default=8, help="completions of each prompt")
a.add_argument("--new-tokens", type=int, default=64)
a.add_argument("--beta", type=float, default=0.04, help="weight of the KL to the reference; 0: no reference pass")
a.add_argument("--steps", type=int, default=4, help="the first one only warms up")
a.add_argument("--threads", type=int, default=2)
a.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16 where the CPU multiplies it")
a.add_argument("--dump", help="where to write the prompts")
a.add_argument("--dry", action="store_true", help="answer with a token or two and compute nothing: for --dump alone")
o = a.parse_args()
torch.set_num_threads(o.threads)
rows = [r for r in json.load(open(o.data)) if not r["input"] and len(r["instruction"]) < 200][:64]
data = Dataset.from_list([{"prompt": [{"role": "user", "content": r["instruction"]}]} for r in rows])
steps, lengths, prompts, rollouts = [], [], [], []


def near_forty_words(completions, completion_ids, **kw):
    lengths.append([len(ids) for ids in completion_ids])
    return [-abs(len(c[0]["content"].split()) - 40) / 40 for c in completions]


class Clock(TrainerCallback):
    def on_step_begin(self, args, state, control, **kw):
        self.started = time.time()

    def on_step_end(self, args, state, control, **kw):
        steps.append(time.time() - self.started)


class Recording(GRPOTrainer):
    def _generate_and_score_completions(self, inputs):
        started = time.time()
        out = super()._generate_and_score_completions(inputs)
        rollouts.append(time.time() - started)
        for i in range(0, len(inputs), o.generations):
            prompts.append({"prompt": out["prompt_ids"][i][out["prompt_mask"][i].bool()].tolist()})
        return out

    def compute_loss(self, model, *args, **kw):
        if o.dry:
            return sum(0 * p.sum() for p in model.parameters() if p.requires_grad)
        return super().compute_loss(model, *args, **kw)


Recording(
    model=AutoModelForCausalLM.from_pretrained(o.model, dtype={"f32": torch.float32, "bf16": torch.bfloat16}[o.dtype]),
    reward_funcs=near_forty_words, train_dataset=data, processing_class=AutoTokenizer.from_pretrained(o.model),
    args=GRPOConfig(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=o.prompts * o.generations, num_generations=o.generations,
                    max_completion_length=2 if o.dry else o.new_tokens, beta=o.beta, max_steps=o.steps, learning_rate=1e-5, use_cpu=True, bf16=o.dtype == "bf16",
                    report_to="none", logging_steps=1, gradient_checkpointing=False, save_strategy="no", use_vllm=False),
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"), callbacks=[Clock()]).train()
if o.dump:
    with open(o.dump, "w") as file:
        file.writelines(json.dumps(prompt) + "\n" for prompt in prompts)
seconds, timed = sum(steps[1:]), [n for of in lengths[1:] for n in of]
print(json.dumps({"peer": f"trl grpo + peft lora, {o.dtype}", "prompts": o.prompts, "generations": o.generations, "new_tokens": o.new_tokens,
                  "step_s": round(seconds / len(steps[1:]), 2), "rollout_s": round(sum(rollouts[1:]) / len(steps[1:]), 2),
                  "update_s": round((seconds - sum(rollouts[1:])) / len(steps[1:]), 2),
                  "completions_per_second": round(len(timed) / seconds, 3), "completion_tokens": sum(timed),
                  "completion_tokens_per_second": round(sum(timed) / seconds, 1),
                  "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)}))
