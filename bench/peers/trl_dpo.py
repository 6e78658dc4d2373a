"""TRL's DPOTrainer with PEFT LoRA on LLaMA-Factory's dpo_en_demo.json: pairs per second and peak memory. Prints one JSON line.

--dump FILE writes what it trained on, a pair a line, as token ids: for bench/preference.ts, which trains on the same pairs, cut alike, in the same order.
"""
import argparse, json, resource, tempfile, time
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

a = argparse.ArgumentParser()
a.add_argument("--model", required=True)
a.add_argument("--data", required=True)
a.add_argument("--rows", type=int, default=64)
a.add_argument("--batch", type=int, default=4)
a.add_argument("--max-length", type=int, default=512)
a.add_argument("--steps", type=int, default=4, help="the first one only warms up")
a.add_argument("--threads", type=int, default=2)
a.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16 where the CPU multiplies it")
a.add_argument("--precompute", action="store_true", help="ask the reference once, before the first step")
a.add_argument("--dump", help="where to write the pairs")
a.add_argument("--dry", action="store_true", help="compute nothing: for --dump alone")
o = a.parse_args()
torch.set_num_threads(o.threads)
role = {"system": "system", "human": "user", "gpt": "assistant"}
data = Dataset.from_list([{
    "prompt": [{"role": role[c["from"]], "content": c["value"]} for c in r["conversations"]],
    "chosen": [{"role": "assistant", "content": r["chosen"]["value"]}],
    "rejected": [{"role": "assistant", "content": r["rejected"]["value"]}]} for r in json.load(open(o.data))[: o.rows]])
steps, pairs, losses = [], [], []


class Clock(TrainerCallback):
    def on_step_begin(self, args, state, control, **kw):
        self.started = time.time()

    def on_step_end(self, args, state, control, **kw):
        steps.append(time.time() - self.started)

    def on_log(self, args, state, control, logs=None, **kw):
        if "loss" in logs:
            losses.append(round(float(logs["loss"]), 4))


class Recording(DPOTrainer):
    def compute_loss(self, model, inputs, *args, **kw):
        ids, seen, answer = inputs["input_ids"], inputs["attention_mask"].bool(), inputs["completion_mask"].bool()
        n = len(ids) // 2  # chosen answers, then rejected ones
        for i in range(n):
            pairs.append({"prompt": ids[i][seen[i] & ~answer[i]].tolist(), "chosen": ids[i][answer[i]].tolist(),
                          "rejected": ids[n + i][answer[n + i]].tolist()})
        if o.dry:
            return sum(0 * p.sum() for p in model.parameters() if p.requires_grad)
        return super().compute_loss(model, inputs, *args, **kw)


trainer = Recording(
    model=AutoModelForCausalLM.from_pretrained(o.model, dtype={"f32": torch.float32, "bf16": torch.bfloat16}[o.dtype]),
    args=DPOConfig(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=o.batch, max_steps=o.steps, max_length=o.max_length, report_to="none",
                   use_cpu=True, bf16=o.dtype == "bf16", logging_steps=1, gradient_checkpointing=False, save_strategy="no", learning_rate=5e-6,
                   precompute_ref_log_probs=o.precompute),
    train_dataset=data, processing_class=AutoTokenizer.from_pretrained(o.model),
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"), callbacks=[Clock()])
trainer.train()
if o.dump:
    with open(o.dump, "w") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs)
timed, seconds = pairs[o.batch:], sum(steps[1:])
print(json.dumps({"peer": f"trl dpo + peft lora, {o.dtype}", "batch": o.batch, "max_length": o.max_length, "cached": o.precompute, "pairs": len(timed),
                  "step_s": round(seconds / len(steps[1:]), 2), "pairs_per_second": round(len(timed) / seconds, 4),
                  "scored_tokens_per_second": round(sum(len(p["chosen"]) + len(p["rejected"]) for p in timed) / seconds, 1),
                  "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2), "losses": losses}))
