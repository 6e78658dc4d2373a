// Made by scripts/make-recipe-docs.mjs from the schemas of src/recipe/, src/tuners/, src/objectives/ and src/backends/. Change it there.

/** The settings of a run, under LLaMA-Factory's names: docs/recipe.md. What one method alone reads is refused, or named, under another. */
export interface RecipeSettings {
  /** The base model: a folder, a GGUF file, or a repository name of the hub. */
  readonly model_name_or_path: string;
  /** Branch, tag or commit of the repository; the same as `owner/name@revision` in the name. Default: `main`. */
  readonly model_revision?: string | undefined;
  /** An adapter to continue training from; with create_new_adapter, those to train a new one over, by commas. */
  readonly adapter_name_or_path?: string | null | undefined;
  /** Merge the adapters of adapter_name_or_path into the base, in f32, and train a new one over them; their copies are saved with it, in base_adapters. Default: `false`. */
  readonly create_new_adapter?: boolean | undefined;
  /** What is minimised. Default: `sft`. */
  readonly stage?: "sft" | "pt" | "classification" | "dpo" | "kto" | "bco" | "rm" | "ppo" | "grpo" | "rloo" | undefined;
  /** Several runs, one after the other, in place of `stage`: names, or mappings of `stage` and settings of its own; each begins from what the last one saved (attune's own; docs/rlhf.md). */
  readonly stages?: readonly (NonNullable<RecipeSettings["stage"]> | StageSettings)[] | null | undefined;
  /** Which parameters train, and how they enter the model. Default: `lora`. */
  readonly finetuning_type?: "lora" | "qlora" | "full" | "freeze" | "adapter" | "p-tuning" | "prefix-tuning" | undefined;
  /** The training data: files, or names of `dataset_info.json`. */
  readonly dataset: string | readonly string[];
  /** The folder of `dataset_info.json`, and where files are looked for second. Default: `data`. */
  readonly dataset_dir?: string | undefined;
  /** Held-out data, named like `dataset`. */
  readonly eval_dataset?: string | readonly string[] | null | undefined;
  /** How much of `dataset` to hold out: a share, or a number of rows. Takes a number from 0 and below 1, or a whole number from 1. Default: `0`. */
  readonly val_size?: number | undefined;
  /** How several datasets become one: one after another; or rows in turns or by `interleave_probs`, until one has no more (under), each was through once (over), or all rows are used (once). Held-out rows are taken out before, and not mixed. Default: `concat`. */
  readonly mix_strategy?: "concat" | "interleave_under" | "interleave_over" | "interleave_once" | undefined;
  /** How often each dataset is drawn from, as in Hugging Face's datasets with the same `seed`; not set: in turns. */
  readonly interleave_probs?: string | readonly number[] | null | undefined;
  /** Train rows in the order of the data in every epoch; packed, a sequence ends where the next row does not fit. Default: `false`. */
  readonly disable_shuffling?: boolean | undefined;
  /** The chat template; the model's own where not set. */
  readonly template?: "default" | "alpaca" | "chatml" | "gemma" | "gemma2" | "gemma3" | "llama2" | "llama2_zh" | "llama3" | "ministral" | "mistral" | "mistral_small" | "phi" | "phi_small" | "phi4" | "phi4_mini" | "qwen" | "qwen3" | "qwen3_nothink" | "smollm" | "smollm2" | "vicuna" | "zephyr" | null | undefined;
  /** How tools and calls of them are written, for a chat template that has no place for them; LLaMA-Factory's other formats are not known. */
  readonly tool_format?: "default" | "qwen" | "llama3" | "mistral" | null | undefined;
  /** The system message where a row has none; saved in the chat template, so answers get it too. */
  readonly default_system?: string | null | undefined;
  /** What templates of reasoning models see under this name; false: answers begin after an empty thought, and thoughts of the data are left out; not set: the template's default, thoughts are learned where the data has them. Saved in the chat template. */
  readonly enable_thinking?: boolean | null | undefined;
  /** Longest row, in tokens; what is longer is cut, with a notice. Takes a whole number from 2. Default: `2048`. */
  readonly cutoff_len?: number | undefined;
  /** Read at most this many rows of each dataset. Takes a whole number from 1. */
  readonly max_samples?: number | null | undefined;
  /** Fill every sequence to `cutoff_len` with whole rows; rows never see each other. Default: `false`. */
  readonly packing?: boolean | undefined;
  /** The same as `packing`, which is always neat here. Default: `false`. */
  readonly neat_packing?: boolean | undefined;
  /** Count the prompt in the loss, not only the answers. Default: `false`. */
  readonly train_on_prompt?: boolean | undefined;
  /** Count only the last answer of a conversation in the loss. Default: `false`. */
  readonly mask_history?: boolean | undefined;
  /** What to do with a row that cannot be used: stop, or leave it out and tell; docs/data.md (attune's own). Default: `error`. */
  readonly on_bad_record?: "error" | "skip" | undefined;
  /** Rows per forward and backward; LLaMA-Factory: 8. Takes a whole number from 1. Default: `1`. */
  readonly per_device_train_batch_size?: number | undefined;
  /** Batches summed before the weights change; not set: see `learning_rate`. Takes a whole number from 1. */
  readonly gradient_accumulation_steps?: number | null | undefined;
  /** Passes over the data; may be fractional. Takes a number above 0. Default: `3`. */
  readonly num_train_epochs?: number | undefined;
  /** Stop after this many steps, whatever `num_train_epochs` says; -1: do not. Takes a whole number from 1 to 100000000, or -1. Default: `-1`. */
  readonly max_steps?: number | undefined;
  /** The peak learning rate; not set: the method's own, with its own accumulation and warm-up where these are not set either (the table below). Takes a number from 1e-37 to 1e+38. */
  readonly learning_rate?: number | null | undefined;
  /** How the learning rate goes down after the warm-up. Default: `linear`. */
  readonly lr_scheduler_type?: "linear" | "cosine" | "cosine_with_restarts" | "cosine_with_min_lr" | "cosine_warmup_with_min_lr" | "polynomial" | "inverse_sqrt" | "warmup_stable_decay" | "constant" | "constant_with_warmup" | undefined;
  /** Settings of the schedule: those of transformers' function for it, such as `num_cycles`, `min_lr`, `power`. */
  readonly lr_scheduler_kwargs?: Readonly<Record<string, unknown>> | null | undefined;
  /** Share of the steps in which the learning rate rises from 0; not set: see `learning_rate`. Takes a number from 0 to 1. */
  readonly warmup_ratio?: number | null | undefined;
  /** The same as a number of steps, or below 1 as a share of them (transformers 5); wins over `warmup_ratio` unless 0. Takes a whole number from 0, or a number from 0 and below 1. Default: `0`. */
  readonly warmup_steps?: number | undefined;
  /** How weights are updated: AdamW with moments in f32, or in 8 bits (`adamw_8bit`, as in bitsandbytes), under several names; Adafactor, Lion, Muon, SGD. Default: `adamw_torch`. */
  readonly optim?: "adamw_torch" | "adamw_torch_fused" | "adamw_hf" | "adamw" | "paged_adamw_32bit" | "adamw_8bit" | "adamw_bnb_8bit" | "paged_adamw_8bit" | "adafactor" | "lion_32bit" | "paged_lion_32bit" | "muon" | "sgd" | undefined;
  /** Settings of the optimizer, as `momentum=0.9,nesterov=true` or a mapping: of `sgd` momentum, dampening, nesterov. */
  readonly optim_args?: string | Readonly<Record<string, unknown>> | null | undefined;
  /** The same as `optim: muon`. Default: `false`. */
  readonly use_muon?: boolean | undefined;
  /** What a step takes away of a weight, times the learning rate; of all that trains but biases and norms. Takes a number from 0 to 1e+38. Default: `0`. */
  readonly weight_decay?: number | undefined;
  /** Decay of the first moment of AdamW and Lion. Takes a number from 0 and below 1. Default: `0.9`. */
  readonly adam_beta1?: number | undefined;
  /** Decay of AdamW's second moment; of Lion, how fast its momentum forgets (its paper: 0.99). Takes a number from 0 and below 1. Default: `0.999`. */
  readonly adam_beta2?: number | undefined;
  /** Added to the root of AdamW's second moment. Takes a number from 1e-37 to 1e+38. Default: `1e-8`. */
  readonly adam_epsilon?: number | undefined;
  /** Gradients are scaled down to this norm; 0: never. Takes 0, or a number from 1e-37 to 1e+38. Default: `1`. */
  readonly max_grad_norm?: number | undefined;
  /** Leave out the dropout that the base's own config.json asks for (TRL's name; the adapter's own stays). Default: `false`. */
  readonly disable_dropout?: boolean | undefined;
  /** NEFTune: training adds uniform noise of ±α/√(L·C) to the vectors of tokens, L the length of the row itself, packed or not; not set or 0: none. Takes 0, or a number from 1e-37 to 1e+38. */
  readonly neftune_noise_alpha?: number | null | undefined;
  /** Of initialisation, data order, dropout and noise. Takes a whole number from 0. Default: `42`. */
  readonly seed?: number | undefined;
  /** False: train nothing, and only evaluate (`do_eval`) or answer (`do_predict`), by `adapter_name_or_path` or the base alone; so is a recipe with one of these and `eval_dataset`, without `dataset`. Default: `true`. */
  readonly do_train?: boolean | undefined;
  /** Evaluate held-out rows at the end, whatever `eval_strategy` says; where nothing trains, that is all there is. Default: `false`. */
  readonly do_eval?: boolean | undefined;
  /** At the end, let the model answer the held-out rows: `generated_predictions.jsonl`, and BLEU-4 and ROUGE in `predict_results.json`. Default: `false`. */
  readonly do_predict?: boolean | undefined;
  /** Needs not be said: `do_predict` always writes answers. Default: `false`. */
  readonly predict_with_generate?: boolean | undefined;
  /** Tokens that an answer has at most. Takes a whole number from 1 to 1000000. Default: `1024`. */
  readonly max_new_tokens?: number | undefined;
  /** Draw answers by chance, or take the likeliest token each time. Default: `true`. */
  readonly do_sample?: boolean | undefined;
  /** Above 1 answers vary more, below less. Takes a number above 0 and up to 1000. Default: `0.95`. */
  readonly temperature?: number | undefined;
  /** Draw from the likeliest tokens whose chances add up to this. Takes a number above 0 and up to 1. Default: `0.7`. */
  readonly top_p?: number | undefined;
  /** Draw from so many of the likeliest tokens; 0: all. Takes a whole number from 0. Default: `50`. */
  readonly top_k?: number | undefined;
  /** Above 1, tokens that stand in the text already become less likely. Takes a number above 0 and up to 1000. Default: `1`. */
  readonly repetition_penalty?: number | undefined;
  /** Where adapter, checkpoints and logs go. */
  readonly output_dir: string;
  /** Replace what an earlier run left in `output_dir`. Default: `false`. */
  readonly overwrite_output_dir?: boolean | undefined;
  /** True: go on from the newest complete checkpoint in `output_dir`; or the checkpoint to go on from. Default: `false`. */
  readonly resume_from_checkpoint?: boolean | string | undefined;
  /** A line in the logs every this many steps; LLaMA-Factory: 500. Takes a whole number from 1. Default: `10`. */
  readonly logging_steps?: number | undefined;
  /** When to evaluate, and at the end; no: never; not set: every `eval_steps` if given, else after each epoch, if there is held-out data. */
  readonly eval_strategy?: "no" | "steps" | "epoch" | null | undefined;
  /** Evaluate every this many steps; not set: `logging_steps`. Takes a whole number from 1. */
  readonly eval_steps?: number | null | undefined;
  /** When to save checkpoints; best: after each evaluation that is the best so far; the end is always saved. Default: `steps`. */
  readonly save_strategy?: "no" | "steps" | "epoch" | "best" | undefined;
  /** A checkpoint every this many steps. Takes a whole number from 1. Default: `500`. */
  readonly save_steps?: number | undefined;
  /** Keep only the newest checkpoints; not set: all. Takes a whole number from 1. */
  readonly save_total_limit?: number | null | undefined;
  /** Save the weights of the best evaluation as the result; each evaluation that is the best so far is saved as a checkpoint, which `save_total_limit` never deletes. Default: `false`. */
  readonly load_best_model_at_end?: boolean | undefined;
  /** What tells which evaluation is the best: `loss` (where not set), or a metric such as `accuracy`, with `eval_` before it or not. */
  readonly metric_for_best_model?: string | null | undefined;
  /** Whether more of that metric is better; not set: unless its name ends in `loss`. */
  readonly greater_is_better?: boolean | null | undefined;
  /** End the run after so many evaluations in a row that brought nothing better (evaluations, not steps, whatever the name says). Takes a whole number from 1. */
  readonly early_stopping_steps?: number | null | undefined;
  /** What is better by no more than this is nothing better for `early_stopping_steps`. Takes a number from 0. Default: `0`. */
  readonly early_stopping_threshold?: number | undefined;
  /** Checkpoints without optimizer state: smaller, but no resume from them. Default: `false`. */
  readonly save_only_model?: boolean | undefined;
  /** Tensorboard, or all: also write files for TensorBoard; other services get nothing. Default: `none`. */
  readonly report_to?: string | readonly string[] | undefined;
  /** Where TensorBoard's files go; not set: a folder in `output_dir`/runs, named after the time and the machine. */
  readonly logging_dir?: string | null | undefined;
  /** The type of the saved model's weights where the whole model is saved (full, freeze); base: as in the base's files; not set: f32 for what trained, the rest as it is stored; checkpoints keep f32 (attune's own). */
  readonly save_dtype?: "f32" | "bf16" | "f16" | "base" | null | undefined;
  /** Draw `training_loss.png` at the end; LLaMA-Factory: false. Default: `true`. */
  readonly plot_loss?: boolean | undefined;
  /** What executes the run (attune's own). Default: `native`. */
  readonly backend?: "native" | undefined;
  /** Compute activations twice instead of keeping them: less memory, slower. Default: `false`. */
  readonly gradient_checkpointing?: boolean | undefined;
  /** Rank of the update: adds r · (in + out) weights per layer. Takes a whole number from 1. Default: `8`. */
  readonly lora_rank?: number | undefined;
  /** The update is multiplied by alpha / r; empty: twice the rank. Takes a number from 1e-37 to 1e+38. */
  readonly lora_alpha?: number | null | undefined;
  /** Chance of zeroing an input feature, in training only. Takes a number from 0 and below 1. Default: `0`. */
  readonly lora_dropout?: number | undefined;
  /** Layers to adapt: all (every Linear but the output projection), ends of their names (lm_head and embed_tokens, too), or a regular expression. Default: `all`. */
  readonly lora_target?: string | readonly string[] | undefined;
  /** Layers not to adapt, said like `lora_target`. */
  readonly exclude_modules?: string | readonly string[] | null | undefined;
  /** Adapt only the layers of these numbers, from 0. Takes a whole number from 0, or a list of whole numbers. */
  readonly layers_to_transform?: number | readonly number[] | null | undefined;
  /** The list that `layers_to_transform` counts, by name; empty: the first with numbers. */
  readonly layers_pattern?: string | readonly string[] | null | undefined;
  /** Other ranks for some layers, by the end of their names (a regular expression). */
  readonly rank_pattern?: Readonly<Record<string, number>> | undefined;
  /** Other alphas for some layers, in the same way. */
  readonly alpha_pattern?: Readonly<Record<string, number>> | undefined;
  /** Multiply by alpha / √r instead, so that high ranks learn as fast (rsLoRA). Default: `false`. */
  readonly use_rslora?: boolean | undefined;
  /** Train the length of each row of a weight apart from its direction (DoRA). Default: `false`. */
  readonly use_dora?: boolean | undefined;
  /** Start from the principal singular vectors of each weight (PiSSA). Default: `false`. */
  readonly pissa_init?: boolean | undefined;
  /** Rounds of the approximate SVD for `pissa_init`; -1: exact, slow for wide layers. Takes a whole number from 1 to 1000, or -1. Default: `16`. */
  readonly pissa_iter?: number | undefined;
  /** B learns this many times as fast as A (LoRA+); empty: as fast. Takes a number from 1e-37 to 1e+38. */
  readonly loraplus_lr_ratio?: number | null | undefined;
  /** Which biases train: none, all, or those of the adapted layers. Default: `none`. */
  readonly bias?: "none" | "all" | "lora_only" | undefined;
  /** Modules that train whole and are saved with the adapter, by the end of their names: lm_head, embed_tokens. */
  readonly additional_target?: string | readonly string[] | null | undefined;
  /** 4: keep the base's Linear layers in 4 bits (QLoRA); 8: in 8 bits, as GGUF's Q8_0; empty: as they are stored. */
  readonly quantization_bit?: 4 | 8 | null | undefined;
  /** Which 16 values 4 bits stand for. Default: `nf4`. */
  readonly quantization_type?: "nf4" | "fp4" | undefined;
  /** Quantize the scales of blocks as well: 0.4 bits less for a weight. Default: `true`. */
  readonly double_quantization?: boolean | undefined;
  /** Start from what quantizing the base loses (LoftQ); needs `quantization_bit`. Default: `false`. */
  readonly loftq_init?: boolean | undefined;
  /** Rounds of quantizing and approximating for `loftq_init`. Takes a whole number from 1 to 100. Default: `1`. */
  readonly loftq_iter?: number | undefined;
  /** How many of the last layers train; negative: of the first. Takes a whole number. Default: `2`. */
  readonly freeze_trainable_layers?: number | undefined;
  /** Which parts of these layers train, by name (self_attn, mlp); all: every one. Default: `all`. */
  readonly freeze_trainable_modules?: string | readonly string[] | undefined;
  /** What else trains, by name: lm_head, embed_tokens, norm. */
  readonly freeze_extra_modules?: string | readonly string[] | null | undefined;
  /** Kind of adapter, which decides whatever is not set (AdapterHub: double_seq_bn, seq_bn, par_bn). Default: `houlsby`. */
  readonly adapter_config?: "houlsby" | "pfeiffer" | "parallel" | undefined;
  /** An adapter after the attention of every layer; houlsby: true. */
  readonly mh_adapter?: boolean | null | undefined;
  /** An adapter after the feed-forward part of every layer; every kind: true. */
  readonly output_adapter?: boolean | null | undefined;
  /** Width of the model over that of the bottleneck; or one for each layer by its number, with a `default`; 16, parallel: 2. Takes a number from 0.000001 to 1e+38, or a mapping. */
  readonly reduction_factor?: number | Readonly<Record<string, number>> | null | undefined;
  /** The function in the bottleneck; houlsby: swish, else relu. */
  readonly non_linearity?: "relu" | "gelu" | "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "silu" | "swish" | "tanh" | "sigmoid" | null | undefined;
  /** The adapter reads what goes around the sub-layer, not what comes out of it; parallel: true. */
  readonly is_parallel?: boolean | null | undefined;
  /** Factor of what the adapter adds; learned: it trains, from 1; 1, parallel: 4. Takes a number from -1e+38 to 1e+38, or learned. */
  readonly scaling?: number | "learned" | null | undefined;
  /** The adapter reads the sum of sub-layer and residual; pfeiffer: true. */
  readonly original_ln_before?: boolean | null | undefined;
  /** The residual is added after the adapter; every kind: true. */
  readonly original_ln_after?: boolean | null | undefined;
  /** What comes out of the sub-layer goes around the adapter, not what it reads; every kind: true. */
  readonly residual_before_ln?: boolean | null | undefined;
  /** A LayerNorm of its own before the bottleneck; every kind: false. */
  readonly ln_before?: boolean | null | undefined;
  /** A LayerNorm of its own after the bottleneck; every kind: false. */
  readonly ln_after?: boolean | null | undefined;
  /** That LayerNorm takes in what goes around the adapter; every kind: false. */
  readonly adapter_residual_before_ln?: boolean | null | undefined;
  /** Chance of zeroing a feature of what the adapter adds, in training only; every kind: 0. Takes a number from 0 and below 1. */
  readonly dropout?: number | null | undefined;
  /** Numbers of the layers without adapters, from 0. */
  readonly leave_out?: readonly number[] | null | undefined;
  /** Bert: N(0, 0.02²), nearly the base model; mam_adapter: up-projection 0, the base model itself; houlsby: N(0, 0.01²) up to two deviations; parallel: mam_adapter, else bert. */
  readonly init_weights?: "bert" | "mam_adapter" | "houlsby" | null | undefined;
  /** Virtual tokens before every sequence, as in PEFT's guides. Takes a whole number from 1. Default: `20`. */
  readonly num_virtual_tokens?: number | undefined;
  /** Virtual tokens start as the tokens of a text, as tokens of the vocabulary, or at random; PEFT: RANDOM. Default: `TEXT`. */
  readonly prompt_tuning_init?: "RANDOM" | "SAMPLE_VOCAB" | "TEXT" | undefined;
  /** The text that virtual tokens start as: cut, or repeated, to their number; not set: a plain instruction. */
  readonly prompt_tuning_init_text?: string | null | undefined;
  /** Width of the encoder that makes the virtual tokens; not set: 128 for p-tuning, 512 for prefix-tuning. Takes a whole number from 1 to 65536. */
  readonly encoder_hidden_size?: number | null | undefined;
  /** What makes the virtual tokens while they train; NONE: they train directly (prompt tuning). Default: `MLP`. */
  readonly encoder_reparameterization_type?: "MLP" | "LSTM" | "NONE" | undefined;
  /** Layers of the LSTM encoder; an MLP has three. Takes a whole number from 1 to 100. Default: `2`. */
  readonly encoder_num_layers?: number | undefined;
  /** Chance of zeroing a value between layers of the LSTM encoder, in training only. Takes a number from 0 and below 1. Default: `0`. */
  readonly encoder_dropout?: number | undefined;
  /** Make keys and values by a two-layer network while they train, as in the paper; else they train directly. Default: `false`. */
  readonly prefix_projection?: boolean | undefined;
  /** Share of the wanted probability that goes to all answers alike, the held-out loss included; 0: none. Takes a number from 0 and below 1. Default: `0`. */
  readonly label_smoothing_factor?: number | undefined;
  /** Tell of held-out rows how many supervised tokens the model finds likeliest: `eval_accuracy`, the mean over rows. Default: `false`. */
  readonly compute_accuracy?: boolean | undefined;
  /** Spell out control tokens that stand in the texts (`<|im_end|>`), so that they are read as text; conversations and labelled texts always are. Default: `false`. */
  readonly split_special_tokens?: boolean | undefined;
  /** The classes in the order of the model's outputs; not set: those of the data, sorted. */
  readonly labels?: string | readonly (string | number)[] | null | undefined;
  /** Β: the larger, the nearer the model stays to the reference; λ of ORPO, and the scale of SimPO's and CPO's rewards. Takes a number above 0. Default: `0.1`. */
  readonly pref_beta?: number | undefined;
  /** The loss, or a list of losses whose sum is taken; the table below has their formulas. Default: `sigmoid`. */
  readonly pref_loss?: "sigmoid" | "cdpo" | "hinge" | "ipo" | "sigmoid_norm" | "robust" | "exo_pair" | "nca_pair" | "bco_pair" | "sppo_hard" | "apo_zero" | "apo_down" | "discopop" | "aot" | "aot_unpaired" | "kto_pair" | "orpo" | "simpo" | "cpo" | "sft" | readonly ("sigmoid" | "cdpo" | "hinge" | "ipo" | "sigmoid_norm" | "robust" | "exo_pair" | "nca_pair" | "bco_pair" | "sppo_hard" | "apo_zero" | "apo_down" | "discopop" | "aot" | "aot_unpaired" | "kto_pair" | "orpo" | "simpo" | "cpo" | "sft")[] | undefined;
  /** One weight for each loss of `pref_loss`; not set: 1 each. */
  readonly loss_weights?: readonly number[] | null | undefined;
  /** Ε, the share of pairs that are taken to be the wrong way round: of sigmoid (which is then cdpo, as in LLaMA-Factory; TRL leaves it out there), cdpo, robust, exo_pair, aot, aot_unpaired, simpo and cpo. Takes a number from 0 and below 0.5. Default: `0`. */
  readonly dpo_label_smoothing?: number | undefined;
  /** Weight of −(mean log π of the chosen answer), the mean over pairs; TRL's `sft` in `pref_loss` is the mean over tokens. Takes a number from 0. Default: `0`. */
  readonly pref_ftx?: number | undefined;
  /** W of (L + w · BCO) / (1 + w), with BCO = −log σ(βh_c − δ) − log σ(δ − βh_r) and δ the mean of all rewards βh of the steps before. Takes a number from 0. Default: `0`. */
  readonly pref_bco_weight?: number | undefined;
  /** The margin that SimPO wants between rewards. Takes a number from 0. Default: `0.5`. */
  readonly simpo_gamma?: number | undefined;
  /** Weight of the NLL of the chosen answers' tokens beside cpo and simpo; not set: 1 for cpo, and 0 for simpo, as in LLaMA-Factory (TRL: 1 for both). Takes a number from 0. */
  readonly cpo_alpha?: number | null | undefined;
  /** The likelihood beside ORPO's odds: `answer`, LLaMA-Factory's, −(mean log π of the chosen answer), the mean over pairs; `all_tokens`, TRL's, the mean NLL of all tokens of prompts and chosen answers. Default: `answer`. */
  readonly orpo_nll?: "answer" | "all_tokens" | undefined;
  /** LD-DPO: how much tokens count that lie behind the length of the shorter answer; not set: as all others. Takes a number from 0 to 1. */
  readonly ld_alpha?: number | null | undefined;
  /** Whether `ld_alpha` weighs the reference's log-probabilities too, as in the paper and TRL; LLaMA-Factory: false. Default: `true`. */
  readonly ld_alpha_reference?: boolean | undefined;
  /** Τ of discopop. Takes a number above 0. Default: `0.05`. */
  readonly discopop_tau?: number | undefined;
  /** The divergence that keeps the model near the reference (TRL's name), for losses of a difference of scores. Default: `reverse_kl`. */
  readonly f_divergence_type?: "reverse_kl" | "forward_kl" | "js_divergence" | "alpha_divergence" | undefined;
  /** Α of alpha_divergence. Takes a number. Default: `0.5`. */
  readonly f_alpha_divergence_coef?: number | undefined;
  /** How rows longer than `cutoff_len` are cut: `infer_seqlen`, LLaMA-Factory's, keeps the shorter of prompt and answer whole and else cuts both in proportion; `keep_start`, TRL's, keeps what comes first. A row that would lose all of an answer is left out and counted. Default: `infer_seqlen`. */
  readonly truncation?: "infer_seqlen" | "keep_start" | undefined;
  /** The reference, where it is another model than what training begins from: a folder, a GGUF file, or a repository name of the hub, of the same tokenizer. */
  readonly ref_model?: string | null | undefined;
  /** Adapters that are merged into `ref_model`, one after the other, by commas. */
  readonly ref_model_adapters?: string | null | undefined;
  /** Keep the Linear layers of `ref_model` in 4 bits or in 8, as `quantization_bit` does the base's. */
  readonly ref_model_quantization_bit?: 4 | 8 | null | undefined;
  /** Ask the reference about every row before training and never again: each later epoch is faster, and what full tuning keeps of the base beside the weights that train is not kept. The answers are kept in `reference_log_probs.safetensors` in output_dir, where a resumed run finds them (TRL's name). Default: `false`. */
  readonly precompute_ref_log_probs?: boolean | undefined;
  /** Of an answer with log-ratio h: `kto` 1 − σ(β(h − KL)) if it is good and 1 − σ(β(KL − h)) if not; `apo_zero_unpaired` the same without a KL (TRL's names). Default: `kto`. */
  readonly kto_loss?: "kto" | "apo_zero_unpaired" | undefined;
  /** Weight of good answers; TRL's desirable_weight. Takes a number from 0. Default: `1`. */
  readonly kto_chosen_weight?: number | undefined;
  /** Weight of bad answers; TRL's undesirable_weight. Weight times number of good answers should be 1 to 4/3 times that of bad ones. Takes a number from 0. Default: `1`. */
  readonly kto_rejected_weight?: number | undefined;
  /** Weight of (chosen + rejected score)², which keeps a reward model's scores near 0; not set: 0; its paper: 0.01 (TRL's). Takes a number from 0. */
  readonly center_rewards_coefficient?: number | null | undefined;
  /** The reward model: an adapter of stage rm, which is put on the model that trains; a model with a head of one output (a folder, a name on the hub); or, with reward_model_type: api, the address of a service. */
  readonly reward_model?: string | null | undefined;
  /** What reward_model is: lora: an adapter on the same base (of any method); full: a model of its own; not set: what its folder holds. */
  readonly reward_model_type?: "lora" | "full" | "api" | null | undefined;
  /** An adapter on a reward_model of its own, which then may be any base: the adapter brings the head. */
  readonly reward_model_adapters?: string | null | undefined;
  /** Keep a reward_model of its own in 4 bits (nf4) or 8 bits; not set: as it is stored. */
  readonly reward_model_quantization_bit?: 4 | 8 | null | undefined;
  /** Train on a reward model that stage rm has not shown to be better, with confidence, than judging by length or formatting (attune's own). Default: `false`. */
  readonly ignore_reward_gate?: boolean | undefined;
  /** What judges answers: a list of rewards, each with its type (regex, exact_match, contains, json, length, format, similarity, numeric, string_check, text_similarity, multi, reward_model, api, module, function), perhaps a name and a weight, and settings of its own; docs/rewards.md. */
  readonly rewards?: readonly Readonly<Record<string, unknown>>[] | undefined;
  /** What judges held-out answers only, as `rewards` does those that are learned from: the policy never sees it, so it tells what a reward model stands for. Metrics: `gold`, `gold/…` (attune's own). */
  readonly gold_rewards?: readonly Readonly<Record<string, unknown>>[] | undefined;
  /** What follows where the policy shows signs of going wrong (the notes below name them): warn tells; back_off also makes the KL divergence cost half as much again each round until they are gone; stop ends the run. Default: `warn`. */
  readonly on_unhealthy?: "warn" | "back_off" | "stop" | undefined;
  /** Write answers to a few held-out prompts to `samples.jsonl` every so many steps; not set: with each evaluation only. Takes a whole number from 1. */
  readonly sample_steps?: number | null | undefined;
  /** How often the answers of a roll-out are trained on. Takes a whole number from 1 to 100. Default: `4`. */
  readonly ppo_epochs?: number | undefined;
  /** How many optimizer steps' worth of prompts one roll-out answers; an epoch over it has so many steps. Takes a whole number from 1 to 1000. Default: `1`. */
  readonly ppo_buffer_size?: number | undefined;
  /** Whether scores count from their mean in the first roll-out: values begin at 0, and where every score is below it, learning puts off the end of answers. Default: `true`. */
  readonly center_scores?: boolean | undefined;
  /** Give scores mean 0 and deviation 1, over all of the run so far. Default: `false`. */
  readonly ppo_score_norm?: boolean | undefined;
  /** Give the rewards of tokens deviation 1, before advantages are made of them. Default: `false`. */
  readonly ppo_whiten_rewards?: boolean | undefined;
  /** What the KL divergence from the reference is held to, in nats per answer, where `kl_control` is adaptive. Takes a number above 0. Default: `6`. */
  readonly ppo_target?: number | undefined;
  /** Whether the weight of the divergence follows `ppo_target`, as in LLaMA-Factory; TRL's last PPO: fixed. Default: `adaptive`. */
  readonly kl_control?: "adaptive" | "fixed" | undefined;
  /** What a nat of divergence takes from the rewards, at the start; 0: no reference is kept (TRL's last PPO: 0.05). Takes a number from 0. Default: `0.2`. */
  readonly kl_coef?: number | undefined;
  /** Answers in which an adaptive weight changes by at most a fifth. Takes a number above 0. Default: `10000`. */
  readonly kl_horizon?: number | undefined;
  /** Of the divergence at a token: k1, log π − log π_ref, which may be below 0; or k3, which is not. Default: `k1`. */
  readonly kl_estimator?: "k1" | "k3" | undefined;
  /** How far from 1 the ratio of a token to the policy that answered counts. Takes a number above 0 and up to 1. Default: `0.2`. */
  readonly cliprange?: number | undefined;
  /** How far from its first estimate a value counts. Takes a number above 0. Default: `0.2`. */
  readonly cliprange_value?: number | undefined;
  /** Weight of the value loss. Takes a number from 0. Default: `0.1`. */
  readonly vf_coef?: number | undefined;
  /** What a reward one token later counts. Takes a number above 0 and up to 1. Default: `1`. */
  readonly gamma?: number | undefined;
  /** Λ of generalized advantage estimation. Takes a number from 0 to 1. Default: `0.95`. */
  readonly lam?: number | undefined;
  /** The variance that advantages and rewards are divided by: with Bessel's correction, as in TRL, or without, as in the papers. Default: `sample`. */
  readonly whiten_variance?: "sample" | "population" | undefined;
  /** Taken from the score of an answer that no stop token ended. Takes a number above 0. */
  readonly missing_eos_penalty?: number | null | undefined;
  /** Answers whose mean ratio is above it are left out of a step. Takes a number above 1. Default: `10`. */
  readonly ratio_threshold?: number | undefined;
  /** Answers to each prompt; per_device_train_batch_size counts prompts. Takes a whole number from 2 to 1024. Default: `8`. */
  readonly num_generations?: number | undefined;
  /** Optimizer steps made of each roll-out. Takes a whole number from 1 to 100. Default: `1`. */
  readonly num_iterations?: number | undefined;
  /** How tokens are weighed: grpo, gspo and sapo by the mean of each answer, dapo, bnpo and cispo by the step's tokens, dr_grpo by the longest answer that may be; gspo has one ratio for each answer, cispo clips weights instead of losses, sapo gates softly. Default: `dapo`. */
  readonly loss_type?: "dapo" | "grpo" | "bnpo" | "dr_grpo" | "cispo" | "gspo" | "sapo" | undefined;
  /** What rewards, less the mean of their group, are divided by: the deviation of the group, that of the round, or nothing (Dr. GRPO). Default: `group`. */
  readonly scale_rewards?: "group" | "batch" | "none" | undefined;
  /** How several rewards become one advantage: summed and then normalized as `scale_rewards` says; or each normalized within its group, summed, and normalized over the round (GDPO), so that none drowns the others by its range. Default: `sum_then_normalize`. */
  readonly multi_objective_aggregation?: "sum_then_normalize" | "normalize_then_sum" | undefined;
  /** How far below 1 the ratio to the policy that answered counts (gspo's paper: 3e-4). Takes a number above 0 and up to 1. Default: `0.2`. */
  readonly epsilon?: number | undefined;
  /** How far above 1; not set: `epsilon`, and 5 with cispo, where it is the largest weight (DAPO: 0.28, gspo's paper: 4e-4). Takes a number above 0. */
  readonly epsilon_high?: number | null | undefined;
  /** The largest ratio where clipping does not reach: of answers worse than their group. Takes a number above 1. */
  readonly delta?: number | null | undefined;
  /** Weight of the KL divergence from the reference, per token (k3); 0: no reference is kept. Takes a number from 0. Default: `0`. */
  readonly beta?: number | undefined;
  /** Multiply the KL term by the ratio, so that its gradient is that of the divergence (TRL's since 1.16; before, there was none). Default: `true`. */
  readonly use_bias_correction_kl?: boolean | undefined;
  /** Leave answers that were cut at `max_new_tokens` out of the loss; they still count in the mean of their group. Default: `false`. */
  readonly mask_truncated_completions?: boolean | undefined;
  /** Leave groups whose rewards are all the same out of the loss; false: their KL term counts, as in TRL (attune's own). Default: `false`. */
  readonly drop_flat_groups?: boolean | undefined;
  /** Sapo: τ of answers better than their group. Takes a number above 0. Default: `1`. */
  readonly sapo_temperature_pos?: number | undefined;
  /** Sapo: τ of the others. Takes a number above 0. Default: `1.05`. */
  readonly sapo_temperature_neg?: number | undefined;
  /** Give the advantages of a round mean 0 and deviation 1. Default: `false`. */
  readonly normalize_advantages?: boolean | undefined;
  /** Cut rewards to this range, before the KL divergence is taken from them. */
  readonly reward_clip_range?: readonly unknown[] | null | undefined;
  /** How matrix products multiply; auto: bf16 only where the CPU has it in hardware (attune's own). Default: `auto`. */
  readonly compute_dtype?: "auto" | "f32" | "bf16" | undefined;
  /** Engine threads; not set: one per core (attune's own). Takes a whole number from 1 to 1024. */
  readonly threads?: number | null | undefined;
}

/** A stage of `stages` with settings of its own; the rest are the recipe's. */
export interface StageSettings
  extends Partial<Omit<RecipeSettings, "stage" | "stages" | "output_dir" | "overwrite_output_dir" | "resume_from_checkpoint">> {
  readonly stage: NonNullable<RecipeSettings["stage"]>;
}
