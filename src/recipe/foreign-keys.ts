/**
 * Settings of other trainers that recipes bring along, and what becomes of each: renamed, taken differently, needless, or refused. None is
 * quietly obeyed otherwise than it says, and none of LLaMA-Factory's is unknown. What the schemas read under its own name is not here,
 * unless it means something else here. docs/from-llama-factory.md is made from these lists; foreign-keys.zh.ts translates their sentences.
 *
 * Source: LLaMA-Factory 0.9.3 to 0.9.5, src/llamafactory/hparams; TrainingArguments of transformers 4.55 to 5.6; axolotl's and TRL's
 * configuration.
 */

/** The same sentence for several keys. */
function each<const Key extends string, const Sentence extends string>(keys: readonly Key[], sentence: Sentence) {
  return Object.fromEntries(keys.map((key) => [key, sentence])) as Readonly<Record<Key, Sentence>>;
}

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
  per_gpu_train_batch_size: "per_device_train_batch_size",
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
  early_stopping_patience: "early_stopping_steps",
};

/** What is accepted, but means something else here than in LLaMA-Factory: settings of ours, and others that are told when the run starts. */
export const differently = {
  model_name_or_path: "a folder, a GGUF file or a repository of Hugging Face's hub; not of ModelScope or Modelers",
  adapter_name_or_path:
    "one adapter in PEFT's format, which is trained on; several only with `create_new_adapter`: copies of them are saved with the new one",
  dataset: "also paths of files, which need no `dataset_info.json`: the format is found out",
  template:
    "where not set, the model's own; named ones are those of the families that run here, and told where they differ from the model's own",
  mix_strategy:
    "held-out rows are taken out before datasets are mixed, so none of them trains; there, repeated rows may be in both",
  enable_thinking: "null is not set here: an answer without thoughts learns its empty thought, as under true",
  tool_format: "the formats of the families that run here; where not set, the chat template's own way",
  cutoff_len:
    "a longer row is cut at its end, and told with the count; there, prompt and answer are cut in proportion, as here in preference stages (`truncation`)",
  pref_loss: "as it says; LLaMA-Factory trains `sigmoid` for `hinge`, `ipo` and `kto_pair` on the TRL that it installs",
  ld_alpha: "weighs the reference too, as in the paper; there the model alone, here with `ld_alpha_reference: false`",
  pref_bco_weight: "its mean of rewards is that of the steps before; there of micro-batches, the one at hand included",
  pref_ftx: "the mean over pairs, and for `kto` over good answers; there `kto` multiplies it by rows per good answer",
  packing: "rows that share a sequence never see each other, as with `neat_packing` there; whole rows only",
  neat_packing: "the same as `packing`",
  streaming: "rows are always read as they are needed, and shuffled whole: it needs no `max_steps`",
  buffer_size: "the data is shuffled whole, not within a buffer",
  split_special_tokens: "control tokens in the words of a chat always stay plain text; those of the template are tokens",
  quantization_bit: "4: NF4 or FP4, bit for bit as bitsandbytes quantizes; 8: GGUF's Q8_0, there LLM.int8",
  finetuning_type: "also `qlora` and the methods of docs/recipe.md; `oft` is not there",
  stage: "those of docs/recipe.md; `dpo` is also ORPO, SimPO, CPO and IPO, by `pref_loss`",
  learning_rate: "where not set, the method's own rate, with its accumulation and warm-up; there 5e-5",
  optim: "one of the optimizers of docs/recipe.md; `adamw_torch`, `adamw_torch_fused` and their like are the same here",
  lr_scheduler_type: "all but those that follow the loss",
  lr_scheduler_kwargs:
    "settings that the schedule does not know are refused; of `warmup_stable_decay`, `num_decay_steps` alone leaves all other steps at the peak",
  use_muon: "its weight decay leaves out biases and norms",
  report_to: "`tensorboard` (also by `all`) is written; other services get nothing, and each is told",
  seed: "the same seed gives the same run here, not the numbers that PyTorch draws",
  data_seed: "`seed` decides the order of the data too",
  eval_strategy: "where held-out data is given and this is not, it is evaluated after each epoch",
  eval_steps: "a number of steps, not a share of them; where not set, `logging_steps`",
  eval_on_each_dataset: "held-out data is evaluated as one",
  save_steps: "a number of steps, not a share of them",
  save_strategy: "`best` is not there",
  logging_steps: "a number of steps, not a share of them; every step is in events.jsonl",
  logging_first_step: "`logging_steps` decides; events.jsonl has every step",
  gradient_checkpointing: "off where not set, as long as memory suffices; the result is the same",
  pure_bf16: "what trains is kept in f32, which loses less; the base keeps its stored type",
  resume_from_checkpoint:
    "true: the newest complete checkpoint of `output_dir`; there, a run resumes by itself where it finds one",
  cache_dir: "models are stored where HF_HOME says, shared with Python",
} as const;

const noInference = "answers come from attune's own engine";
const noUpload = "attune does not upload; the folder it writes is what `hf upload` takes";
const ownLogs = "metrics go to trainer_log.jsonl, trainer_state.json and events.jsonl in `output_dir`";

/** What changes nothing about the result, whatever executes the run, each with the reason. */
export const needless = {
  // The model and where it comes from
  trust_remote_code: "attune never runs code from a model's repository, and the models it supports do not need any",
  hf_hub_token: "a recipe is no place for a secret, and it is copied beside the run; set HF_TOKEN instead",
  ms_hub_token: "attune does not use ModelScope",
  om_hub_token: "attune does not use Modelers",
  print_param_status: "the start of a run says how many weights train",
  pissa_convert: "what was learnt from PiSSA's start is always saved as an ordinary LoRA",
  lora_target_linear: "`lora_target: all` is the default",
  // The data
  overwrite_cache: "there is no dataset cache",
  ...each(["tokenized_path", "dataset_prepared_path"], "there is no dataset cache: tokenizing takes seconds"),
  remove_unused_columns: "columns that are not read are named and left: docs/data.md",
  ...each(["label_names", "length_column_name"], "columns are told from the data: docs/data.md"),
  media_dir: "pictures, sound and film are looked for there; attune trains on text",
  // Evaluation
  ...each(["prediction_loss_only", "include_for_metrics", "include_inputs_for_metrics"], "evaluation computes the loss"),
  ...each(["eval_do_concat_batches", "batch_eval_metrics"], "held-out data is evaluated as one"),
  eval_on_start: "held-out data is evaluated first when `eval_strategy` says; the weights do not depend on it",
  // Logs and what is saved
  ...each(["use_swanlab", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"], ownLogs),
  ...each(["swanlab_project", "swanlab_workspace", "swanlab_run_name", "swanlab_mode", "swanlab_logdir"], ownLogs),
  ...each(
    ["swanlab_api_key", "swanlab_lark_webhook_url", "swanlab_lark_secret"],
    "a recipe is no place for a secret, and it is copied beside the run; metrics stay in `output_dir`",
  ),
  run_name: "the run is named by its `output_dir`",
  logging_strategy: "`logging_steps` decides",
  logging_nan_inf_filter: "a loss that is not a finite number stops the run",
  ...each(["log_level", "log_level_replica", "log_on_each_node"], "attune has one way of logging"),
  disable_tqdm: "the bar is shown on a terminal only",
  include_num_input_tokens_seen: "tokens are always counted",
  ...each(["include_tokens_per_second", "include_effective_tokens_per_second"], "speed is always measured"),
  skip_memory_metrics: "peak memory is always measured",
  ...each(["save_safetensors", "save_on_each_node"], "attune saves safetensors, once"),
  enable_jit_checkpoint: "a run that is stopped saves a checkpoint first",
  restore_callback_states_from_checkpoint: "a resumed run goes on exactly where it stopped",
  ...each(["push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"], noUpload),
  ...each(["push_to_hub_model_id", "push_to_hub_organization", "export_hub_model_id"], noUpload),
  ...each(["hub_token", "push_to_hub_token"], "a recipe is no place for a secret, and attune does not upload"),
  // Ways to compute the same
  full_determinism: "a run repeats bit by bit on the same machine with the same threads",
  auto_find_batch_size: "a run that does not fit into memory is told before it starts, with what would fit",
  average_tokens_across_devices: "the loss of a step is always the mean over its tokens",
  ...each(["use_cache", "use_kv_cache"], "training keeps no cache of keys and values, answers always use one"),
  // Settings of other engines for answers
  ...each(["infer_backend", "infer_dtype", "offload_folder"], noInference),
  ...each(["vllm_maxlen", "vllm_gpu_util", "vllm_enforce_eager", "vllm_max_lora_rank", "vllm_config"], noInference),
  ...each(["sglang_maxlen", "sglang_mem_fraction", "sglang_tp_size", "sglang_config", "sglang_lora_backend"], noInference),
  length_penalty: "it is about beams, which answers here do not use",
  // What only a setting reads that is refused below
  ...each(
    ["galore_target", "galore_rank", "galore_update_interval", "galore_scale", "galore_proj_type", "galore_layerwise"],
    "only `use_galore` reads it, which is refused",
  ),
  ...each(
    ["apollo_target", "apollo_rank", "apollo_update_interval", "apollo_scale", "apollo_proj", "apollo_proj_type"],
    "only `use_apollo` reads it, which is refused",
  ),
  ...each(["apollo_scale_type", "apollo_layerwise", "apollo_scale_front"], "only `use_apollo` reads it, which is refused"),
  ...each(
    ["badam_mode", "badam_start_block", "badam_switch_mode", "badam_switch_interval", "badam_update_ratio"],
    "only `use_badam` reads it, which is refused",
  ),
  ...each(["badam_mask_mode", "badam_verbose"], "only `use_badam` reads it, which is refused"),
  ...each(
    ["module_dropout", "oft_rank", "oft_block_size", "oft_target"],
    "only `finetuning_type: oft` reads it, which is not there; `lora` is",
  ),
  asft_alpha: "only `use_asft_loss` reads it, which is refused",
  eaft_alpha: "only `use_eaft_loss` reads it, which is refused",
  init_special_tokens: "only `add_special_tokens` reads it, which is refused",
  ...each(
    ["profiler_output_dir", "profiler_wait_steps", "profiler_warmup_steps", "profiler_active_steps", "profiler_repeat"],
    "it belongs to torch's profiler; events.jsonl has the time of every step",
  ),
  ...each(
    ["enable_torch_profiler", "profiler_record_shapes", "profiler_profile_memory", "profiler_with_stack", "profile_modules"],
    "it belongs to torch's profiler; events.jsonl has the time of every step",
  ),
  ...each(
    ["export_size", "export_device", "export_legacy_format", "export_quantization_nsamples", "export_quantization_maxlen"],
    "only exports read it: `attune export`",
  ),
} as const;

const oneProcess = "one process trains";
const fewSeconds = "tokenizing takes seconds";
const whileComputing = "batches are made while the engine computes";
const noPadding = "batches hold no padding";
const gpuKernels = "it is a set of GPU kernels";
const evaluationSame = "the evaluation loss does not depend on it";

/** What changes nothing about the result where one process trains on the CPU: the native backend's own. */
export const needlessOnOneCpu = {
  // The arithmetic
  bnb_4bit_compute_dtype: "`compute_dtype` says how products multiply, whatever the base is stored in",
  bf16: "attune picks the arithmetic from the CPU; `compute_dtype: bf16` forces it",
  fp16: "attune computes in f32 or bf16, which need no loss scaling; see `compute_dtype`",
  ...each(["fp16_opt_level", "fp16_backend", "half_precision_backend"], "attune computes in f32 or bf16; see `compute_dtype`"),
  tf32: "it is a mode of NVIDIA GPUs",
  ...each(["fp16_full_eval", "bf16_full_eval"], "evaluation computes as training does"),
  upcast_layernorm: "norms are always computed in f32",
  upcast_lmhead_output: "logits are always f32",
  // One process on the CPU
  ...each(["use_cpu", "no_cuda", "use_mps_device", "use_ipex"], "the native engine runs on the CPU"),
  ...each(["tpu_num_cores", "tpu_metrics_debug"], "the native engine runs on the CPU"),
  ...each(["use_habana", "use_lazy_mode", "gaudi_config_name", "throughput_warmup_steps"], "the native engine runs on the CPU"),
  ...each(["use_hpu_graphs_for_training", "use_hpu_graphs_for_inference"], "the native engine runs on the CPU"),
  ddp_timeout: "one process trains: there is nobody to wait for",
  ...each(
    ["ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend"],
    "one process trains: there is no DDP",
  ),
  ...each(["local_rank", "is_model_parallel", "mp_parameters", "data_shared_file_system", "eval_use_gather_object"], oneProcess),
  ...each(["quantization_device_map", "ray_scope"], oneProcess),
  // Attention and other kernels
  ...each(["flash_attn", "flash_attention"], "attention here never holds T × T scores"),
  attn_implementation: "there is one attention, and it never holds T × T scores",
  ...each(["use_unsloth", "use_v1_kernels"], gpuKernels),
  ...each(
    ["enable_liger_kernel", "use_liger_kernel", "liger_kernel_config"],
    "it is a set of GPU kernels; cross-entropy here is chunked already",
  ),
  ...each(
    ["torch_compile", "torch_compile_backend", "torch_compile_mode", "torchdynamo", "jit_mode_eval"],
    "there is nothing to compile",
  ),
  // Memory
  use_unsloth_gc: "`gradient_checkpointing: true` is the way here",
  disable_gradient_checkpointing: "it is off unless `gradient_checkpointing: true`",
  ...each(
    ["gradient_checkpointing_kwargs", "use_reentrant_gc", "activation_checkpointing_kwargs"],
    "there is one kind of it here",
  ),
  activation_checkpointing: "`gradient_checkpointing: true` is the way here",
  low_cpu_mem_usage: "weights are mapped from disk and never held twice",
  torch_empty_cache_steps: "the engine gives memory back by itself",
  debug: "it looks for faults of GPUs",
  // Tokenizing and batches
  use_fast_tokenizer: "there is one tokenizer, and it reads `tokenizer.json`",
  ...each(["preprocessing_num_workers", "preprocessing_batch_size", "dataset_num_proc"], fewSeconds),
  ...each(["dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"], whileComputing),
  ...each(["dataloader_multiprocessing_context", "dataloader_in_order"], whileComputing),
  dataloader_pin_memory: "there is no device to copy to",
  ...each(["group_by_length", "sortish_sampler"], "batches hold no padding, so there is nothing to gain"),
  ...each(["pad_to_sequence_len", "ignore_pad_token_for_loss"], noPadding),
  // Evaluation
  ...each(
    ["per_device_eval_batch_size", "per_gpu_eval_batch_size"],
    "attune picks it: the evaluation loss does not depend on it",
  ),
  ...each(["eval_accumulation_steps", "use_legacy_prediction_loop", "past_index"], evaluationSame),
} as const;

/** What would change the result: refused, unless its value asks for what attune does anyway. */
export interface RefusedKey {
  /** Values that change nothing; `false` and `0` where not given. */
  readonly harmless?: readonly unknown[];
  readonly why: string;
  /** The line to write in its place, where there is one. */
  readonly instead?: string;
}

/** One refusal for several keys, each with its harmless values. */
function all<const Why extends string, const Keys extends Readonly<Record<string, readonly unknown[]>>>(why: Why, keys: Keys) {
  return Object.fromEntries(Object.entries(keys).map(([key, harmless]) => [key, { harmless, why }])) as {
    readonly [Key in keyof Keys]: { readonly harmless: readonly unknown[]; readonly why: Why };
  };
}

const off = [false] as const;

export const refused = {
  // Many machines and GPUs
  ...all("left for the PyTorch backend, which is not there yet: here one process trains", {
    deepspeed: ["", false],
    fsdp: ["", false, []],
    fsdp_config: ["", {}],
    fsdp_min_num_params: [0],
    fsdp_transformer_layer_cls_to_wrap: [],
    accelerator_config: [{}],
    parallelism_config: [{}],
    use_mca: off,
    use_hyper_parallel: off,
    hyper_parallel_args: [],
    ray_num_workers: [0, 1],
    ray_init_kwargs: [{}],
    ray_run_name: [],
    ray_storage_path: ["./saves"],
    ray_storage_filesystem: [],
    resources_per_worker: [],
    placement_strategy: ["PACK"],
    master_addr: [],
    master_port: [],
  }),
  ...all("it is Megatron's, and left for the PyTorch backend, which is not there yet: here one process trains", {
    tensor_model_parallel_size: [1],
    pipeline_model_parallel_size: [1],
    virtual_pipeline_model_parallel_size: [1],
    expert_model_parallel_size: [1],
    context_parallel_size: [1],
    sequence_parallel: off,
    bias_activation_fusion: [false, true],
    apply_rope_fusion: [false, true],
    use_distributed_optimizer: [false, true],
    overlap_param_gather: [false, true],
    overlap_grad_reduce: [false, true],
    moe_grouped_gemm: [false, true],
    moe_token_dispatcher_type: [],
    recompute_granularity: [],
  }),
  ...all("it is the layout of LLaMA-Factory's v1, which is not read: the settings of docs/recipe.md say the same", {
    model_class: ["llm"],
    init_config: [],
    peft_config: [],
    kernel_config: [],
    quant_config: [],
    dist_config: [],
    optim_config: [],
    lr_scheduler_config: [],
    train_dataset: [],
    sample_backend: [],
    global_batch_size: [],
    batching_strategy: [],
    batching_workers: [],
    enable_activation_checkpointing: [],
    save_epochs: [],
    save_ckpt_as_hf: [],
    mtp_config: [],
    cp_mode: [],
    cp_size: [1],
  }),
  ...all("left for the PyTorch backend, which is not there yet: 8-bit floats are for GPUs", {
    fp8: off,
    fp8_backend: ["auto"],
    fp8_enable_fsdp_float8_all_gather: off,
  }),
  ...all("left for the PyTorch backend, which is not there yet: KTransformers runs mixtures of experts", {
    use_kt: off,
    kt_weight_path: [],
    kt_expert_checkpoint_path: [],
    kt_use_lora_experts: off,
    kt_lora_expert_num: [],
    kt_lora_expert_intermediate_size: [],
    kt_maxlen: [4096],
    kt_mode: ["normal"],
    kt_use_cuda_graph: [false, true],
    kt_optimize_rule: [],
    kt_force_think: off,
    kt_cpu_activation: [],
    kt_non_expert_weight_path: [],
    kt_config: [],
    cpu_infer: [32],
    chunk_size: [8192],
    mode: ["normal"],
  }),

  // Pictures, sound and film
  ...all("attune trains on text; a model and data of text run without it", {
    image_max_pixels: [589824],
    image_min_pixels: [1024],
    image_do_pan_and_scan: off,
    crop_to_patches: off,
    video_max_pixels: [65536],
    video_min_pixels: [256],
    video_fps: [2],
    video_maxlen: [128],
    use_audio_in_video: off,
    audio_sampling_rate: [16000],
    freeze_vision_tower: [true],
    freeze_multi_modal_projector: [true],
    freeze_language_model: off,
  }),

  // The weights that training starts from
  quantization_method: {
    harmless: ["bnb", "bitsandbytes"],
    why: "the base is quantized as bitsandbytes does it, not by HQQ, EETQ, GPTQ or AWQ",
    instead: "quantization_bit: 4",
  },
  load_in_4bit: { why: "it is bitsandbytes' name of it", instead: "quantization_bit: 4" },
  load_in_8bit: { why: "it is bitsandbytes' name of it", instead: "quantization_bit: 8" },
  loftq_config: { harmless: [{}], why: "it is PEFT's name of it", instead: "loftq_init: true" },
  init_lora_weights: { harmless: [true], why: "here `pissa_init` and `loftq_init` choose another start" },
  use_peft: { harmless: [true], why: "it is TRL's name of it", instead: "finetuning_type: full" },
  adapter_folder: { why: "`adapter_name_or_path` takes the whole path of the adapter" },
  train_from_scratch: { why: "training starts from the weights of the base" },
  rope_scaling: { why: "RoPE is scaled as the model's config.json says" },
  shift_attn: { why: "LongLoRA's shifted attention is not there: attention is the model's own" },
  mixture_of_depths: { why: "mixture-of-depths is not there: the model's layers stay as they are" },
  use_llama_pro: { why: "LLaMA Pro's new blocks are not there; `finetuning_type: freeze` trains some of the model's own" },
  moe_aux_loss_coef: { why: "mixtures of experts are not supported" },
  ...all("the vocabulary stays the base's", {
    resize_vocab: off,
    add_tokens: [],
    add_special_tokens: [],
    new_special_tokens_config: [],
    freeze_original_embeddings: off,
    special_tokens: [{}],
  }),

  // The data
  datasets: { why: "it is axolotl's name of it", instead: "dataset: a.jsonl, b.jsonl" },
  preserve_thinking: { why: "the chat template decides what stays of the thoughts of earlier answers" },
  packing_strategy: { harmless: ["bfd"], why: "whole rows are packed, as TRL's `bfd` does" },
  assistant_only_loss: { harmless: [true], why: "it is TRL's name of it", instead: "train_on_prompt: true" },
  completion_only_loss: { harmless: [true], why: "it is TRL's name of it", instead: "train_on_prompt: true" },
  dataloader_drop_last: { why: "the last rows of a pass are trained on, too" },
  train_sampling_strategy: {
    harmless: ["random", "group_by_length"],
    why: "rows are shuffled",
    instead: "disable_shuffling: true",
  },

  // The steps
  use_galore: { why: "GaLore is not there; `optim` takes AdamW, also with 8-bit moments, Adafactor, Lion, Muon and SGD" },
  optim_target_modules: {
    why: "GaLore is not there; `optim` takes AdamW, also with 8-bit moments, Adafactor, Lion, Muon and SGD",
  },
  use_apollo: { why: "APOLLO is not there; `optim` takes AdamW, also with 8-bit moments, Adafactor, Lion, Muon and SGD" },
  use_badam: { why: "BAdam is not there; `optim` takes AdamW, also with 8-bit moments, Adafactor, Lion, Muon and SGD" },
  use_adam_mini: { why: "Adam-mini is not there; `optim` takes AdamW, also with 8-bit moments, Adafactor, Lion, Muon and SGD" },
  adafactor: { why: "`optim` names the optimizer" },
  loraplus_lr_embedding: { harmless: [1e-6], why: "embeddings train whole, by `additional_target`" },
  ...all("this loss is not there: cross-entropy is minimised", { use_dft_loss: off, use_asft_loss: off, use_eaft_loss: off }),
  rl: { why: "it is axolotl's name of it: `stage` says what is minimised, and `pref_loss` which loss of pairs" },
  use_weighting: { why: "WPO's weights are not there" },
  sync_ref_model: { why: "the reference is what training begins from, and stays so" },
  ignore_data_skip: { why: "a resumed run goes on with the rows that it has not seen" },

  // Evaluation and answers
  eval_delay: { why: "held-out data is evaluated from the first time on that `eval_strategy` says" },
  saves_per_epoch: { why: "it is axolotl's name of it", instead: "save_strategy: epoch" },
  evals_per_epoch: { why: "it is axolotl's name of it", instead: "eval_strategy: epoch" },
  ...all("answers are sampled or the likeliest token is taken; there are no beams", {
    num_beams: [0, 1],
    eval_num_beams: [0, 1],
    generation_num_beams: [0, 1],
  }),
  skip_special_tokens: { harmless: [true], why: "control tokens are never part of an answer" },
  generation_max_length: { why: "it is transformers' name of it", instead: "max_new_tokens: 1024" },
  generation_config: { why: "`attune chat` says how answers are sampled" },
  ...all("it belongs to the benchmarks of `llamafactory-cli eval`, which are not there; `val_size` holds rows out to evaluate", {
    task: [],
    task_dir: [],
    lang: [],
    n_shot: [],
    save_dir: [],
    download_mode: [],
  }),
  batch_size: {
    why: "in LLaMA-Factory it belongs to the benchmarks of `llamafactory-cli eval`",
    instead: "per_device_train_batch_size: 4",
  },

  // Exports
  export_dir: { why: "`attune export` reads it, training does not" },
  export_quantization_bit: { why: "`attune export` reads it, training does not" },
  export_quantization_dataset: { why: "`attune export` reads it, training does not" },
} as const satisfies Readonly<Record<string, RefusedKey>>;

/** Values that other trainers know, of settings that attune reads, and why attune refuses them. */
export const refusedValues: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  lr_scheduler_type: {
    reduce_lr_on_plateau: "the learning rate here depends on the step alone, not on how training goes",
    greedy: "the learning rate here depends on the step alone, not on how training goes",
  },
  optim: {
    ...each(
      ["adamw_torch_xla", "adamw_torch_npu_fused", "adamw_apex_fused", "adamw_anyprecision"],
      "it is AdamW for other machines: write adamw_torch",
    ),
    adamw_torch_8bit: "write adamw_8bit, which keeps moments as bitsandbytes does",
    adamw_torch_4bit: "moments in 4 bits are not there: write adamw_8bit",
    lion_8bit: "write lion_32bit, which keeps 4 bytes a weight",
    paged_lion_8bit: "write lion_32bit, which keeps 4 bytes a weight",
    ...each(
      [
        ...["rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "adagrad", "lomo", "adalomo", "grokadamw"],
        ...["ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "stable_adamw"],
        ...["galore_adamw", "galore_adamw_8bit", "galore_adafactor", "apollo_adamw", "apollo_adamw_layerwise"],
        ...["galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"],
        ...["schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"],
      ],
      "it is not there",
    ),
  },
  quantization_bit: each(["2", "3", "5", "6"], "the base is kept in 4 bits, in 8, or as it is stored"),
  template: {
    ...each(
      [
        ...["bailing", "bailing_v2", "breeze", "chatglm3", "chatml_de", "cohere", "cpm4", "dbrx", "deepseek"],
        ...["deepseek3", "deepseekr1", "hy3", "deepseekcoder", "dots_ocr", "empty", "ernie", "ernie_nothink"],
        ...["ernie_vl", "exaone", "falcon", "falcon_h1", "fewshot", "gemma3n", "gemma4", "gemma4n", "glm4", "glm4_moe"],
        ...["glm4v", "glm4_5v", "glm_ocr", "glm4_7", "glmz1", "gpt_oss", "granite3", "granite3_vision", "granite4"],
        ...["index", "hunyuan", "hunyuan_small", "intern2", "intern_vl", "intern_s1", "keye_vl", "kimi_vl", "lfm2"],
        ...["lfm2_vl", "llama4", "mllama", "moonlight", "llava", "llava_next", "llava_next_llama3", "llava_next_mistral"],
        ...["llava_next_qwen", "llava_next_yi", "llava_next_video", "llava_next_video_mistral", "llava_next_video_yi"],
        ...["mimo", "mimo_v2", "mimo_vl", "minicpm_v", "minicpm_v_4_6", "minicpm_o", "minimax1", "minimax2", "ministral3"],
        ...["olmo", "openchat", "openchat-3.6", "opencoder", "paligemma", "paligemma_chat", "pixtral", "qwen2_audio"],
        ...["qwen2_omni", "qwen3_omni", "qwen3_omni_nothink", "qwen2_vl", "qwen3_vl", "qwen3_vl_nothink", "qwen3_5"],
        ...["qwen3_5_nothink", "qwen3_6", "sailor", "seed_coder", "seed_oss", "solar", "starchat", "telechat2"],
        ...["video_llava", "xuanyuan", "yi", "yi_vl", "youtu", "youtu_vl", "yuan", "aeva"],
      ],
      "it belongs to a family that does not run here, or to none; without the line, the model's own template is used",
    ),
    ...each(["tokenizer_default", "auto"], "without the line, the model's own template is used"),
  },
};

/** Other trainers' names for stages and tuning methods, so that they are "not yet" and not "unknown". */
export const knownStages: readonly string[] = ["pt", "sft", "rm", "ppo", "dpo", "kto", "grpo"];

/** Other trainers' stages that are losses of one of ours. */
export const stagesElsewhere: Readonly<Record<string, string>> = each(
  ["orpo", "simpo", "cpo", "ipo"],
  "is a loss of pairs: write stage: dpo, and it as pref_loss",
);
export const knownTuners: readonly string[] = ["lora", "full", "freeze", "oft", "qlora"];
