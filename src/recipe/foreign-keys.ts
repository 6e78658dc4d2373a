/**
 * Settings of other trainers that recipes bring along. None of them is read under its own name: an alias is renamed, an unneeded
 * setting is explained and dropped, and one that would change the result is refused, so that no recipe is quietly run otherwise than
 * it says.
 *
 * Source: LLaMA-Factory src/llamafactory/hparams at ff6d4d12, Hugging Face's TrainingArguments, axolotl's and TRL's configuration.
 */

/** Other names of our settings: axolotl's, TRL's, PEFT's, and old ones of Hugging Face. */
export const aliases: Readonly<Record<string, string>> = {
  base_model: "model_name_or_path",
  model: "model_name_or_path",
  lora_model_dir: "adapter_name_or_path",
  adapter: "finetuning_type",
  dataset_name: "dataset",
  val_set_size: "val_size",
  chat_template: "template",
  sequence_len: "cutoff_len",
  max_length: "cutoff_len",
  max_seq_length: "cutoff_len",
  sample_packing: "packing",
  train_on_inputs: "train_on_prompt",
  micro_batch_size: "per_device_train_batch_size",
  num_epochs: "num_train_epochs",
  lr_scheduler: "lr_scheduler_type",
  evaluation_strategy: "eval_strategy",
  r: "lora_rank",
  lora_r: "lora_rank",
  lora_target_modules: "lora_target",
  target_modules: "lora_target",
  optimizer: "optim",
  lora_modules_to_save: "additional_target",
  modules_to_save: "additional_target",
  bnb_4bit_quant_type: "quantization_type",
  bnb_4bit_use_double_quant: "double_quantization",
  use_bnb_nested_quant: "double_quantization",
};

/** Settings that change nothing about the result, whatever executes the run, each with the reason. */
export const unneeded: Readonly<Record<string, string>> = {
  pissa_convert: "what was learnt from PiSSA's start is always saved as an ordinary LoRA",
  trust_remote_code: "attune never runs code from a model's repository, and the models it supports do not need any",
  cache_dir: "models are stored where HF_HOME says, shared with Python",
  hf_hub_token: "a recipe is no place for a secret, and it is copied beside the run; set HF_TOKEN instead",
  ms_hub_token: "attune does not use ModelScope",
  om_hub_token: "attune does not use Modelers",
  overwrite_cache: "there is no dataset cache",
  tokenized_path: "there is no dataset cache: tokenizing takes seconds",
  dataset_prepared_path: "there is no dataset cache: tokenizing takes seconds",
  remove_unused_columns: "columns that are not read are named and left: docs/data.md",
  do_eval: "held-out data (`val_size` or `eval_dataset`) is evaluated when `eval_strategy` says",
  eval_on_each_dataset: "held-out data is evaluated as one",
  prediction_loss_only: "evaluation computes the loss",
  predict_with_generate: "evaluation computes the loss",
  data_seed: "`seed` decides the order of the data too",
  run_name: "the run is named by its `output_dir`",
  logging_strategy: "`logging_steps` decides",
  logging_first_step: "`logging_steps` decides; events.jsonl has every step",
  logging_nan_inf_filter: "a loss that is not a finite number stops the run",
  log_level: "attune has one way of logging",
  disable_tqdm: "the bar is shown on a terminal only",
  include_num_input_tokens_seen: "tokens are always counted",
  include_tokens_per_second: "speed is always measured",
  print_param_status: "the start of a run says how many weights train",
  save_safetensors: "attune saves nothing else",
  push_to_hub: "attune does not upload",
  hub_token: "a recipe is no place for a secret, and attune does not upload",
  lora_target_linear: "`lora_target: all` is the default",
};

/** A setting that attune does not support yet: refused, unless its value asks for what attune does anyway. */
export interface MissingKey {
  /** Values that change nothing; `false` and `0` where not given. */
  readonly harmless?: readonly unknown[];
  readonly advice: string;
}

const multimodal = "attune trains on text";
const otherOptimizers = "`optim` takes AdamW, also with 8-bit moments, Adafactor, Lion, Muon and SGD";
const noGeneration = "it belongs to generation, which recipes do not set";

export const missing: Readonly<Record<string, MissingKey>> = {
  quantization_method: { harmless: ["bnb", "bitsandbytes"], advice: "weights are quantized as bitsandbytes quantizes them" },
  load_in_4bit: { advice: "write `quantization_bit: 4`" },
  load_in_8bit: { advice: "`quantization_bit: 4` is there, 8 is not" },
  loraplus_lr_embedding: { harmless: [1e-6], advice: "embeddings train whole, by `additional_target`" },
  loftq_config: { harmless: [{}], advice: "write `loftq_init: true` and `loftq_iter`" },
  init_lora_weights: { harmless: [true], advice: "the other starts are `pissa_init: true` and `loftq_init: true`" },
  use_peft: { harmless: [true], advice: "`finetuning_type: full` trains without an adapter" },
  create_new_adapter: { advice: "`adapter_name_or_path` continues training the adapter it names" },
  use_galore: { advice: otherOptimizers },
  use_apollo: { advice: otherOptimizers },
  use_badam: { advice: otherOptimizers },
  use_adam_mini: { advice: otherOptimizers },
  neftune_noise_alpha: { advice: "no noise is added to the embeddings" },
  use_llama_pro: { advice: "no blocks are added to the model" },
  rope_scaling: { advice: "RoPE is scaled as the model's config.json says" },
  shift_attn: { advice: "attention is the model's own" },
  mixture_of_depths: { advice: "the model's layers stay as they are" },
  moe_aux_loss_coef: { advice: "mixtures of experts are not supported" },
  train_from_scratch: { advice: "training starts from the weights of the base" },
  resize_vocab: { advice: "the vocabulary stays the base's" },
  add_tokens: { advice: "the vocabulary stays the base's" },
  add_special_tokens: { advice: "the vocabulary stays the base's" },
  model_revision: { harmless: ["main"], advice: "write the revision behind the name: `model_name_or_path: owner/name@revision`" },
  adapter_folder: { advice: "give `adapter_name_or_path` the whole path" },
  mix_strategy: { harmless: ["concat"], advice: "datasets are put one after another and shuffled" },
  interleave_probs: { advice: "datasets are put one after another and shuffled" },
  datasets: { advice: "write `dataset: a.jsonl, b.jsonl`: the format is found out from the file" },
  enable_thinking: { harmless: [true], advice: "thoughts are learned where the data has them and the chat template writes them" },
  media_dir: { advice: multimodal },
  image_max_pixels: { advice: multimodal },
  video_max_pixels: { advice: multimodal },
  metric_for_best_model: { advice: "no checkpoint is treated as the best" },
  early_stopping_steps: { advice: "training goes on to the end" },
  early_stopping_patience: { advice: "training goes on to the end" },
  compute_accuracy: { advice: "evaluation computes the loss" },
  load_best_model_at_end: { advice: "the end of training is saved; the loss at each checkpoint is in trainer_state.json" },
  assistant_only_loss: { harmless: [true], advice: "`train_on_prompt: true` counts the prompt in the loss" },
  completion_only_loss: { harmless: [true], advice: "`train_on_prompt: true` counts the prompt in the loss" },
  do_predict: { advice: noGeneration },
  max_new_tokens: { advice: noGeneration },
  do_sample: { advice: noGeneration },
  temperature: { advice: noGeneration },
  top_p: { advice: noGeneration },
  top_k: { advice: noGeneration },
  repetition_penalty: { advice: noGeneration },
  export_dir: { advice: "export is not there; the adapter is saved in PEFT's format" },
  saves_per_epoch: { advice: "say `save_strategy: epoch` or `save_steps`" },
  evals_per_epoch: { advice: "say `eval_strategy: epoch` or `eval_steps`" },
  rl: { advice: "`stage` says what is minimised" },
  packing_strategy: { harmless: ["bfd"], advice: "whole rows are packed" },
  special_tokens: { harmless: [{}], advice: "special tokens are the base's" },
  pref_beta: { advice: "preference training is not there" },
  pref_loss: { advice: "preference training is not there" },
  pref_ftx: { advice: "preference training is not there" },
  ref_model: { advice: "preference training is not there" },
  reward_model: { advice: "PPO is not there" },
};

/** Values that other trainers know, of settings that attune reads, and why attune refuses them. */
export const missingValues: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  lr_scheduler_type: {
    reduce_lr_on_plateau: "the learning rate here depends on the step alone, not on how training goes",
    greedy: "the learning rate here depends on the step alone, not on how training goes",
  },
  optim: {
    ...Object.fromEntries(
      ["adamw_torch_xla", "adamw_torch_npu_fused", "adamw_apex_fused", "adamw_anyprecision"].map((name) => [
        name,
        "it is AdamW for other machines: write adamw_torch",
      ]),
    ),
    adamw_torch_8bit: "write adamw_8bit, which keeps moments as bitsandbytes does",
    adamw_torch_4bit: "moments in 4 bits are not there: write adamw_8bit",
    lion_8bit: "write lion_32bit, which keeps 4 bytes a weight",
    paged_lion_8bit: "write lion_32bit, which keeps 4 bytes a weight",
    ...Object.fromEntries(
      [
        ...["rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "adagrad", "lomo", "adalomo", "grokadamw"],
        ...["ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "stable_adamw"],
        ...["galore_adamw", "galore_adamw_8bit", "galore_adafactor", "apollo_adamw", "apollo_adamw_layerwise"],
        ...["galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"],
        ...["schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"],
      ].map((name) => [name, "it is not there"]),
    ),
  },
};

/** Other trainers' names for stages and tuning methods, so that they are "not yet" and not "unknown". */
export const knownStages: readonly string[] = ["pt", "sft", "rm", "ppo", "dpo", "kto", "orpo", "grpo"];
export const knownTuners: readonly string[] = ["lora", "full", "freeze", "oft", "qlora"];
