import type { differently, needless, needlessOnOneCpu, refused } from "./foreign-keys.js";

type SentencesOf<List> = Extract<List[keyof List], string>;

/** The sentences of foreign-keys.ts. */
export type Sentence =
  | SentencesOf<typeof differently>
  | SentencesOf<typeof needless>
  | SentencesOf<typeof needlessOnOneCpu>
  | (typeof refused)[keyof typeof refused]["why"];

/** What foreign-keys.ts says, in Chinese: one entry for each of its sentences. */
export const chinese: Readonly<Record<Sentence, string>> = {
  "a folder, a GGUF file or a repository of Hugging Face's hub; not of ModelScope or Modelers":
    "本地文件夹、GGUF 文件或 Hugging Face Hub 上的仓库；不支持 ModelScope 与 Modelers",
  "one adapter in PEFT's format, which is trained on; several only with `create_new_adapter`: copies of them are saved with the new one":
    "一个 PEFT 格式的适配器，在其上继续训练；只有配合 `create_new_adapter` 才能写多个，它们的副本与新适配器一起保存",
  "also paths of files, which need no `dataset_info.json`: the format is found out":
    "也可以直接写文件路径，无需 `dataset_info.json`，格式会自动识别",
  "where not set, the model's own; named ones are those of the families that run here, and told where they differ from the model's own":
    "未设置时用模型自带的模板；可写的名字限于 attune 支持的模型系列，与模型自带模板不一致时会提示",
  "the formats of the families that run here; where not set, the chat template's own way":
    "限于 attune 支持的模型系列的格式；未设置时按对话模板自身的写法",
  "a longer row is cut at its end, and told with the count; there, prompt and answer are cut in proportion, as here in preference stages (`truncation`)":
    "过长的样本从末尾截断，并报告条数；LLaMA-Factory 按比例截断提示与回答，这里只有偏好阶段如此（`truncation`）",
  "as it says; LLaMA-Factory trains `sigmoid` for `hinge`, `ipo` and `kto_pair` on the TRL that it installs":
    "名副其实；LLaMA-Factory 在它所安装的 TRL 上，对 `hinge`、`ipo` 与 `kto_pair` 实际训练的是 `sigmoid`",
  "weighs the reference too, as in the paper; there the model alone, here with `ld_alpha_reference: false`":
    "与论文一致，参考模型也加权；LLaMA-Factory 只对被训练的模型加权，这里用 `ld_alpha_reference: false`",
  "its mean of rewards is that of the steps before; there of micro-batches, the one at hand included":
    "其中奖励的均值取自之前的各步；LLaMA-Factory 取自各微批次，含当前批次",
  "the mean over pairs, and for `kto` over good answers; there `kto` multiplies it by rows per good answer":
    "对偏好对取平均，`kto` 则对好的回答取平均；LLaMA-Factory 的 `kto` 还乘以样本数与好回答数之比",
  "rows that share a sequence never see each other, as with `neat_packing` there; whole rows only":
    "同一序列中的样本互不可见（相当于 LLaMA-Factory 的 `neat_packing`），且只放完整样本",
  "the same as `packing`": "与 `packing` 相同",
  "rows are always read as they are needed, and shuffled whole: it needs no `max_steps`":
    "样本总是按需读取，并在全部数据上打乱，因此不需要 `max_steps`",
  "the data is shuffled whole, not within a buffer": "在全部数据上打乱，而不是在缓冲区内",
  "control tokens in the words of a chat always stay plain text; those of the template are tokens":
    "对话内容里出现的控制符始终当作普通文本；模板写出的控制符才是特殊 token",
  "4: NF4 or FP4, bit for bit as bitsandbytes quantizes; 8: GGUF's Q8_0, there LLM.int8":
    "4：NF4 或 FP4，与 bitsandbytes 的量化结果逐位一致；8：GGUF 的 Q8_0（LLaMA-Factory 为 LLM.int8）",
  "also `qlora` and the methods of docs/recipe.md; `oft` is not there": "另有 `qlora` 与 docs/recipe.md 中的方法；没有 `oft`",
  "those of docs/recipe.md; `dpo` is also ORPO, SimPO, CPO and IPO, by `pref_loss`":
    "docs/recipe.md 中的阶段；`dpo` 通过 `pref_loss` 也涵盖 ORPO、SimPO、CPO 与 IPO",
  "where not set, the method's own rate, with its accumulation and warm-up; there 5e-5":
    "未设置时用该方法自己的学习率、梯度累积与预热；LLaMA-Factory 为 5e-5",
  "one of the optimizers of docs/recipe.md; `adamw_torch`, `adamw_torch_fused` and their like are the same here":
    "docs/recipe.md 中的优化器之一；`adamw_torch`、`adamw_torch_fused` 等在这里是同一个",
  "all but those that follow the loss": "除依据损失调整的之外都支持",
  "the same seed gives the same run here, not the numbers that PyTorch draws":
    "相同的种子在这里得到相同的结果，但随机数与 PyTorch 不同",
  "`seed` decides the order of the data too": "数据顺序也由 `seed` 决定",
  "where held-out data is given and this is not, it is evaluated after each epoch":
    "给出了验证数据而没有设置此项时，每个 epoch 之后评估一次",
  "a number of steps, not a share of them; where not set, `logging_steps`": "步数，不能写比例；未设置时等于 `logging_steps`",
  "held-out data is evaluated as one": "所有验证数据合在一起评估",
  "a number of steps, not a share of them": "步数，不能写比例",
  "`best` is not there": "没有 `best`",
  "a number of steps, not a share of them; every step is in events.jsonl": "步数，不能写比例；每一步都记录在 events.jsonl 中",
  "`logging_steps` decides; events.jsonl has every step": "由 `logging_steps` 决定；每一步都记录在 events.jsonl 中",
  "settings that the schedule does not know are refused; of `warmup_stable_decay`, `num_decay_steps` alone leaves all other steps at the peak":
    "调度器不认识的设置会被拒绝；对 `warmup_stable_decay`，只写 `num_decay_steps` 时，其余步数都保持峰值学习率",
  "its weight decay leaves out biases and norms": "权重衰减不作用于偏置和归一化层",
  "`tensorboard` (also by `all`) is written; other services get nothing, and each is told":
    "会写出 `tensorboard`（`all` 也一样）的文件；其他服务收不到任何数据，并逐一提示",
  "off where not set, as long as memory suffices; the result is the same": "未设置时不启用；启用与否结果相同，只影响内存与速度",
  "what trains is kept in f32, which loses less; the base keeps its stored type":
    "训练的参数以 f32 保存，精度更高；基座保持原来的存储类型",
  "true: the newest complete checkpoint of `output_dir`; there, a run resumes by itself where it finds one":
    "true：从 `output_dir` 中最新的完整检查点继续；LLaMA-Factory 发现检查点时会自动继续",
  "models are stored where HF_HOME says, shared with Python": "模型缓存在 HF_HOME 指定的位置，与 Python 共用",
  "attune never runs code from a model's repository, and the models it supports do not need any":
    "attune 从不运行模型仓库里的代码，支持的模型也不需要",
  "a recipe is no place for a secret, and it is copied beside the run; set HF_TOKEN instead":
    "配方会被复制到输出目录，不应存放密钥；请设置环境变量 HF_TOKEN",
  "attune does not use ModelScope": "attune 不使用 ModelScope",
  "attune does not use Modelers": "attune 不使用 Modelers",
  "the start of a run says how many weights train": "训练开始时会报告可训练参数的数量",
  "what was learnt from PiSSA's start is always saved as an ordinary LoRA": "以 PiSSA 初始化训练的结果总是保存为普通 LoRA",
  "`lora_target: all` is the default": "默认即为 `lora_target: all`",
  "there is no dataset cache": "没有数据集缓存",
  "there is no dataset cache: tokenizing takes seconds": "没有数据集缓存：分词只需几秒",
  "columns that are not read are named and left: docs/data.md": "用不到的列会列出名字并忽略：见 docs/data.md",
  "columns are told from the data: docs/data.md": "各列由数据自动识别：见 docs/data.md",
  "pictures, sound and film are looked for there; attune trains on text": "它指定图像、音频与视频的位置；attune 只训练文本",
  "evaluation computes the loss": "评估计算的是损失",
  "held-out data is evaluated first when `eval_strategy` says; the weights do not depend on it":
    "第一次评估的时间由 `eval_strategy` 决定；不影响权重",
  "metrics go to trainer_log.jsonl, trainer_state.json and events.jsonl in `output_dir`":
    "指标写入 `output_dir` 下的 trainer_log.jsonl、trainer_state.json 与 events.jsonl",
  "a recipe is no place for a secret, and it is copied beside the run; metrics stay in `output_dir`":
    "配方会被复制到输出目录，不应存放密钥；指标保存在 `output_dir` 中",
  "the run is named by its `output_dir`": "以 `output_dir` 作为这次训练的名字",
  "`logging_steps` decides": "由 `logging_steps` 决定",
  "a loss that is not a finite number stops the run": "损失不是有限数时训练会停止",
  "attune has one way of logging": "attune 只有一种日志方式",
  "the bar is shown on a terminal only": "进度条只在终端中显示",
  "tokens are always counted": "总会统计 token 数",
  "speed is always measured": "总会测量速度",
  "peak memory is always measured": "总会测量内存峰值",
  "attune saves safetensors, once": "attune 只保存一份 safetensors",
  "a run that is stopped saves a checkpoint first": "训练被中止时会先保存检查点",
  "a resumed run goes on exactly where it stopped": "恢复的训练从停下的地方精确继续",
  "attune does not upload; the folder it writes is what `hf upload` takes":
    "attune 不上传模型；可用 `hf upload` 上传它写出的文件夹",
  "a recipe is no place for a secret, and attune does not upload": "配方不应存放密钥，而且 attune 不上传模型",
  "a run repeats bit by bit on the same machine with the same threads": "在同一台机器上用相同线程数重复训练，结果逐位一致",
  "a run that does not fit into memory is told before it starts, with what would fit":
    "内存放不下时，训练开始前就会说明，并给出放得下的设置",
  "the loss of a step is always the mean over its tokens": "一步的损失总是其所有 token 的平均",
  "training keeps no cache of keys and values, answers always use one": "训练不保留 KV 缓存，生成总是使用 KV 缓存",
  "answers come from attune's own engine": "推理使用 attune 自己的引擎",
  "it is about beams, which answers here do not use": "它用于束搜索，这里的生成不使用束搜索",
  "only `use_galore` reads it, which is refused": "只有 `use_galore` 会用到它，而后者被拒绝",
  "only `use_apollo` reads it, which is refused": "只有 `use_apollo` 会用到它，而后者被拒绝",
  "only `use_badam` reads it, which is refused": "只有 `use_badam` 会用到它，而后者被拒绝",
  "only `finetuning_type: oft` reads it, which is not there; `lora` is":
    "只有 `finetuning_type: oft` 会用到它，而 OFT 尚未支持；可用 `lora`",
  "only `use_asft_loss` reads it, which is refused": "只有 `use_asft_loss` 会用到它，而后者被拒绝",
  "only `use_eaft_loss` reads it, which is refused": "只有 `use_eaft_loss` 会用到它，而后者被拒绝",
  "only `add_special_tokens` reads it, which is refused": "只有 `add_special_tokens` 会用到它，而后者被拒绝",
  "it belongs to torch's profiler; events.jsonl has the time of every step":
    "属于 torch 的性能分析器；每一步的用时记录在 events.jsonl 中",
  "only exports read it: `attune export`": "只在导出时用到：`attune export`",
  "`compute_dtype` says how products multiply, whatever the base is stored in":
    "无论基座以何种类型存储，乘法的精度由 `compute_dtype` 决定",
  "attune picks the arithmetic from the CPU; `compute_dtype: bf16` forces it":
    "attune 根据 CPU 选择运算精度；`compute_dtype: bf16` 可强制使用 bf16",
  "attune computes in f32 or bf16, which need no loss scaling; see `compute_dtype`":
    "attune 以 f32 或 bf16 运算，不需要损失缩放；见 `compute_dtype`",
  "attune computes in f32 or bf16; see `compute_dtype`": "attune 以 f32 或 bf16 运算；见 `compute_dtype`",
  "it is a mode of NVIDIA GPUs": "它是 NVIDIA GPU 的一种模式",
  "evaluation computes as training does": "评估与训练使用相同的运算",
  "norms are always computed in f32": "归一化总是以 f32 计算",
  "logits are always f32": "logits 总是 f32",
  "the native engine runs on the CPU": "native 引擎在 CPU 上运行",
  "one process trains: there is nobody to wait for": "单进程训练，没有需要等待的进程",
  "one process trains: there is no DDP": "单进程训练，没有 DDP",
  "one process trains": "单进程训练",
  "attention here never holds T × T scores": "这里的注意力从不保存 T × T 的分数矩阵",
  "there is one attention, and it never holds T × T scores": "只有一种注意力实现，从不保存 T × T 的分数矩阵",
  "it is a set of GPU kernels": "它是一组 GPU 算子",
  "it is a set of GPU kernels; cross-entropy here is chunked already": "它是一组 GPU 算子；这里的交叉熵本来就是分块计算的",
  "there is nothing to compile": "没有需要编译的内容",
  "`gradient_checkpointing: true` is the way here": "这里请用 `gradient_checkpointing: true`",
  "it is off unless `gradient_checkpointing: true`": "除非 `gradient_checkpointing: true`，否则不启用",
  "there is one kind of it here": "这里只有一种实现",
  "weights are mapped from disk and never held twice": "权重由磁盘映射，不会占用两份内存",
  "the engine gives memory back by itself": "引擎会自行归还内存",
  "it looks for faults of GPUs": "它用于排查 GPU 的问题",
  "there is one tokenizer, and it reads `tokenizer.json`": "只有一种分词器，读取 `tokenizer.json`",
  "tokenizing takes seconds": "分词只需几秒",
  "batches are made while the engine computes": "批次在引擎计算的同时准备",
  "there is no device to copy to": "没有需要拷贝到的设备",
  "batches hold no padding, so there is nothing to gain": "批次中没有填充，因此没有收益",
  "batches hold no padding": "批次中没有填充",
  "attune picks it: the evaluation loss does not depend on it": "由 attune 选择；评估损失与它无关",
  "the evaluation loss does not depend on it": "评估损失与它无关",
  "left for the PyTorch backend, which is not there yet: here one process trains":
    "留给尚未完成的 PyTorch 后端：这里是单进程训练",
  "left for the PyTorch backend, which is not there yet: 8-bit floats are for GPUs":
    "留给尚未完成的 PyTorch 后端：8 位浮点数用于 GPU",
  "left for the PyTorch backend, which is not there yet: KTransformers runs mixtures of experts":
    "留给尚未完成的 PyTorch 后端：KTransformers 用于混合专家模型",
  "it is Megatron's, and left for the PyTorch backend, which is not there yet: here one process trains":
    "属于 Megatron，留给尚未完成的 PyTorch 后端：这里是单进程训练",
  "it is the layout of LLaMA-Factory's v1, which is not read: the settings of docs/recipe.md say the same":
    "这是 LLaMA-Factory v1 的写法，尚不读取：请用 docs/recipe.md 中相应的设置",
  "attune trains on text; a model and data of text run without it": "attune 只训练文本；文本模型与文本数据去掉这一行即可运行",
  "the base is quantized as bitsandbytes does it, not by HQQ, EETQ, GPTQ or AWQ":
    "基座按 bitsandbytes 的方式量化，不支持 HQQ、EETQ、GPTQ 与 AWQ",
  "it is bitsandbytes' name of it": "这是 bitsandbytes 的叫法",
  "it is PEFT's name of it": "这是 PEFT 的叫法",
  "it is TRL's name of it": "这是 TRL 的叫法",
  "here `pissa_init` and `loftq_init` choose another start": "这里用 `pissa_init` 与 `loftq_init` 选择其他初始化",
  "rows are shuffled": "样本会被打乱",
  "held-out rows are taken out before datasets are mixed, so none of them trains; there, repeated rows may be in both":
    "先留出评估样本再混合数据集，留出的样本不会参与训练；LLaMA-Factory 中重复的样本可能两边都有",
  "null is not set here: an answer without thoughts learns its empty thought, as under true":
    "null 在这里等于未设置：没有思考的回答会学习空的思考，与 true 相同",
  "`adapter_name_or_path` takes the whole path of the adapter": "请在 `adapter_name_or_path` 中写适配器的完整路径",
  "training starts from the weights of the base": "训练从基座的权重开始",
  "RoPE is scaled as the model's config.json says": "RoPE 按模型的 config.json 缩放",
  "LongLoRA's shifted attention is not there: attention is the model's own": "没有 LongLoRA 的移位注意力：使用模型自身的注意力",
  "mixture-of-depths is not there: the model's layers stay as they are": "没有 Mixture-of-Depths：模型的层保持原样",
  "LLaMA Pro's new blocks are not there; `finetuning_type: freeze` trains some of the model's own":
    "没有 LLaMA Pro 的扩展层；`finetuning_type: freeze` 可训练模型自己的一部分层",
  "mixtures of experts are not supported": "不支持混合专家模型",
  "the vocabulary stays the base's": "词表保持与基座一致",
  "the chat template decides what stays of the thoughts of earlier answers": "历史回答中的思考内容是否保留由对话模板决定",
  "whole rows are packed, as TRL's `bfd` does": "只打包完整样本，与 TRL 的 `bfd` 相同",
  "the last rows of a pass are trained on, too": "每轮最后不足一批的样本也会参与训练",
  "GaLore is not there; `optim` takes AdamW, also with 8-bit moments, Adafactor, Lion, Muon and SGD":
    "尚未支持 GaLore；`optim` 可选 AdamW（含 8 位动量）、Adafactor、Lion、Muon 与 SGD",
  "APOLLO is not there; `optim` takes AdamW, also with 8-bit moments, Adafactor, Lion, Muon and SGD":
    "尚未支持 APOLLO；`optim` 可选 AdamW（含 8 位动量）、Adafactor、Lion、Muon 与 SGD",
  "BAdam is not there; `optim` takes AdamW, also with 8-bit moments, Adafactor, Lion, Muon and SGD":
    "尚未支持 BAdam；`optim` 可选 AdamW（含 8 位动量）、Adafactor、Lion、Muon 与 SGD",
  "Adam-mini is not there; `optim` takes AdamW, also with 8-bit moments, Adafactor, Lion, Muon and SGD":
    "尚未支持 Adam-mini；`optim` 可选 AdamW（含 8 位动量）、Adafactor、Lion、Muon 与 SGD",
  "`optim` names the optimizer": "优化器由 `optim` 指定",
  "embeddings train whole, by `additional_target`": "嵌入层通过 `additional_target` 整体训练",
  "this loss is not there: cross-entropy is minimised": "没有这种损失：最小化的是交叉熵",
  "it is axolotl's name of it: `stage` says what is minimised, and `pref_loss` which loss of pairs":
    "这是 axolotl 的叫法：训练目标由 `stage` 指定，偏好对的损失由 `pref_loss` 指定",
  "WPO's weights are not there": "没有 WPO 的权重",
  "the reference is what training begins from, and stays so": "参考模型就是训练的起点，并一直保持不变",
  "a resumed run goes on with the rows that it has not seen": "恢复的训练从尚未见过的样本继续",
  "held-out data is evaluated from the first time on that `eval_strategy` says": "从 `eval_strategy` 规定的第一次起就评估",
  "it is axolotl's name of it": "这是 axolotl 的叫法",
  "answers are sampled or the likeliest token is taken; there are no beams": "生成采用采样或取概率最大的 token，没有束搜索",
  "control tokens are never part of an answer": "回答中从不包含控制符",
  "it is transformers' name of it": "这是 transformers 的叫法",
  "`attune chat` says how answers are sampled": "采样方式由 `attune chat` 的选项决定",
  "it belongs to the benchmarks of `llamafactory-cli eval`, which are not there; `val_size` holds rows out to evaluate":
    "属于 `llamafactory-cli eval` 的评测，尚未支持；可用 `val_size` 留出验证数据",
  "in LLaMA-Factory it belongs to the benchmarks of `llamafactory-cli eval`":
    "在 LLaMA-Factory 中属于 `llamafactory-cli eval` 的评测",
  "`attune export` reads it, training does not": "由 `attune export` 读取，训练不使用",
};
