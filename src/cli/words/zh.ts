import type { Words } from "./en.js";

/** 简体中文。术语沿用 LLaMA-Factory 的中文说法：微调、适配器、模板、量化、检查点。 */
export const zh: Words = {
  program: {
    description: "在自己的机器上微调语言模型。",
    version: "显示版本号",
    help: "显示本帮助，或某个命令的帮助",
    lang: "输出所用的语言：en 或 zh；默认由环境决定（ATTUNE_LANG、LANG）",
    examples: `
示例：
  attune train recipe.yaml                       按配方训练
  attune chat --model MODEL --adapter runs/mine  与训练结果对话
  attune export --adapter runs/mine --to gguf --out exported
  attune data preview orders.jsonl               看看模型会学到什么

MODEL 可以是文件夹、GGUF 文件，或 hub 上的名字，例如 HuggingFaceTB/SmolLM2-135M-Instruct。
配方是 YAML 文件，设置项沿用 LLaMA-Factory 的名字；全部列在 docs/recipe.md。`,
    bug: "这是 attune 的缺陷：",
    debug: "设置 ATTUNE_DEBUG=1 再运行一次，可以看到出错的位置。",
    warning: "警告：",
    next: "接下来",
  },

  headings: {
    "Usage:": "用法：",
    "Arguments:": "参数：",
    "Options:": "选项：",
    "Commands:": "命令：",
  },

  options: {
    model: "文件夹、GGUF 文件，或 hub 上的名字",
    template: "不用适配器或模型自带的对话模板，改用这个",
  },

  train: {
    summary: "按配方微调模型",
    description: "按配方微调模型。写在配方之后的设置（key=value 或 --key value）优先于配方。",
    examples: `
最短的配方：
  model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct
  dataset: orders.jsonl          # Alpaca、ShareGPT 或 OpenAI messages，JSON 或 JSONL
  output_dir: runs/orders

示例：
  attune train recipe.yaml
  attune train recipe.yaml num_train_epochs=1 --lora-rank 16
  attune train recipe.yaml resume_from_checkpoint=true     中断之后接着训练

按 Ctrl-C：做完当前这一步，保存后结束；再按一次：立即停止。
全部设置：docs/recipe.md。退出码：2 输入有误，3 训练发散，4 磁盘空间不足，5 内存放不下，130 被中断。`,
    stopping: "做完这一步就停；再按一次 Ctrl-C 立即停止。",
    stage: (number, of, objective) => `第 ${number} 阶段（共 ${of} 个）：${objective}`,
    stageIsDone: (path) => `此前已完成，在 ${path}`,
    weights: (trainable, all, share) => `训练 ${trainable} 个权重，共 ${all} 个${share}`,
    rowsDone: (done: number, total: number, what: string) => `${what}：${total} 行中的 ${done} 行`,
    rows: (rows) => `${rows} 行数据`,
    rowsHeldOut: (rows) => `，另留出 ${rows} 行`,
    steps: (steps, rate) => `；${steps} 步，学习率 ${rate}`,
    goingOn: (step) => `，从第 ${step} 步接着训练`,
    memory: (needed, available) => `约需内存 ${needed}，可用 ${available}`,
    evaluated: (step, loss, metrics) => `第 ${step} 步：留出集损失 ${loss}${metrics}`,
    saved: (step, path) => `第 ${step} 步：已保存 ${path}`,
    step: (step, total) => `第 ${step}/${total} 步`,
    loss: (loss) => `损失 ${loss}`,
    rate: (rate) => `学习率 ${rate}`,
    speed: (tokens) => `${tokens} tokens/s`,
    left: (duration) => `剩余 ${duration}`,
    done: "完成",
    stopped: "已停止",
    after: (verb, duration) => `${verb}，用时 ${duration}：`,
    noStep: "没有剩下要做的步",
    heldOut: (loss, metrics) => `，留出集 ${loss}${metrics}`,
    atMost: (speed, memory) => `；${speed}，内存最多 ${memory}。`,
    adapter: "适配器",
    model: "模型",
    picture: "损失图",
  },

  download: {
    what: (model) => `正在下载 ${model}`,
    of: (done, total, what) => `${done} / ${total} ${what}`,
    baseModel: "基座模型",
  },

  chat: {
    summary: "与模型对话，可带适配器",
    description: "与模型对话。不在终端里时，输入的每一行是一轮对话。",
    adapter: "训练的 output_dir，或 PEFT、AdapterHub 的适配器；写成 NAME=FOLDER 可给多个，在它们之间切换",
    system: "系统提示",
    maxNewTokens: "回答最长多少 token",
    temperature: "0：总取最可能的 token",
    topP: "只从累计概率达到此值的最可能 token 中采样",
    examples: `
对话中用 /help 列出命令。Ctrl-C 停止回答，按两次离开；Ctrl-D 离开。
行末写 \\ 可接着写下一行，Alt-Enter 换行，""" 与 """ 之间可写多行，粘贴的文字不会自动发送。

示例：
  attune chat recipe.yaml                       该配方训练出的结果，或 LLaMA-Factory 推理配方所指的模型
  attune chat recipe.yaml temperature=0.7
  attune chat --model SmolLM2-135M-Instruct --adapter runs/orders
  attune chat --model SmolLM2-135M-Instruct --adapter a=runs/orders --adapter b=runs/poems
  echo "两杯茶，五号桌" | attune chat --model model.gguf`,
    facts: (weights, compute, tokens) => `权重 ${weights}，以 ${compute} 做乘法，上下文 ${tokens} 个 token`,
    adapters: (adapters) => `适配器 ${adapters}`,
    hint: "/help 列出命令；Ctrl-D 离开。",
    commands: `/system TEXT   设定系统提示；/system 显示它，/system "" 去掉它
/set NAME VALUE  改变采样方式，例如 /set temperature 0.7；/set 显示全部
/save FILE     把对话存为训练数据（OpenAI messages）
/reset         忘掉对话
/quit          离开，Ctrl-D 也可；Ctrl-C 停止回答，按两次离开
多行：行末写 \\，或按 Alt-Enter，或粘贴，或写在 """ 与 """ 之间。`,
    adapterCommands: `/adapter NAME  换一个适配器，/base 换回不带适配器的模型
/adapters      列出全部`,
    reset: "对话重新开始。",
    systemIs: (text) => `系统提示：${text}`,
    noSystem: "没有系统提示。",
    savedTo: (messages, file) => `已把 ${messages} 条消息写入 ${file}`,
    base: "从现在起由不带适配器的模型回答。",
    answers: (adapter) => `从现在起由 ${adapter} 回答。`,
    baseName: "（基座）",
    noCommand: (line) => `没有这个命令：${line}`,
    cutAtLimit: (tokens) => `［在 ${tokens} 个 token 处截断；/set max_new_tokens 可放宽］`,
    contextFull: (tokens) => `［截断：模型一共容纳 ${tokens} 个 token；/reset 重新开始］`,
    stopped: "［已停止］",
    thoughtsHeading: "［思考］",
    answerHeading: "［回答］",
    leaving: "再按一次 Ctrl-C，或用 /quit、Ctrl-D 离开。",
  },

  classify: {
    summary: "判断文本属于哪一类",
    description: "逐条输出文本（或输入的每一行）的类别、得分和原文。",
    model: "分类器，或适配器的基座：文件夹、GGUF 文件，或 hub 上的名字",
    adapter: "stage 为 classification 的训练的 output_dir，或 PEFT 的同类适配器",
    json: "每行一个 JSON 对象，含每个类别的得分",
    examples: `
示例：
  attune classify --model all-MiniLM-L6-v2 --adapter runs/reviews "the best soup in town"
  attune classify --model runs/reviews-full --json < reviews.txt`,
  },

  score: {
    summary: "用奖励模型给回答打分",
    description: "对文件中的每个回答打印奖励模型的得分及其位置：成对数据打印 chosen 与 rejected，对话数据打印最后一个回答。",
    model: "奖励模型，或适配器的基座：文件夹、GGUF 文件或模型库中的名称",
    adapter: "stage rm 训练的 output_dir，或 LLaMA-Factory 的同类适配器",
    json: "每行一个 JSON 对象：chosen 与 rejected，或 score",
    right: (right: number, pairs: number) => `${pairs} 对中有 ${right} 对的 chosen 得分更高。`,
    examples: `
示例：
  attune score runs/rm pairs.jsonl
  attune score --model Qwen/Qwen3-0.6B --adapter saves/rm --json answers.jsonl`,
  },

  export: {
    summary: "导出给其他程序：Hugging Face、GGUF、Ollama",
    description: "把适配器合并进基座，写成其他程序能用的模型；或单独写出适配器。",
    to: (targets) => `以下之一：${targets}`,
    out: "写到哪里；必须是新的或空的文件夹",
    model: "文件夹、GGUF 文件，或 hub 上的名字；默认：适配器自己记下的基座",
    adapter: "训练的 output_dir，或 chat 接受的任何适配器",
    type: (types) => `权重的存储类型：${types}；默认：hf 为 bf16，gguf 和 ollama 为 q8_0`,
    data: "用来检查的数据，最多 200 行；默认：训练时留出的行，没有则为训练行",
    checkRows: "其中让模型在导出前后各回答多少行；默认：50；0：不检查",
    force: "即使检查结果是拒绝也写出",
    maxDrift: "只要有一个 logit 的变化超过此值，就什么也不写；默认：该类型的舍入所能解释的值",
    ollamaFrom: "用于 0.34.1 之前的 Ollama：只写适配器，叠在 Ollama 的这个模型或 GGUF 文件之上",
    examples: `
格式：
  hf         transformers、vLLM 等能加载的文件夹
  gguf       model.gguf，用于 llama.cpp、Ollama、LM Studio 等
  gguf-lora  adapter.gguf，供 llama.cpp 叠在基座 GGUF 之上的 LoRA
  ollama     model.gguf 加 Modelfile：ollama create NAME -f FOLDER/Modelfile

示例：
  attune export merge.yaml                      LLaMA-Factory 的合并配方，含 export_dir
  attune export --adapter runs/orders --to gguf --type q4_k_m --out exported
  attune export --adapter runs/orders --to hf --data held-out.jsonl --out exported
  attune export --adapter runs/orders --to ollama --out exported`,
    wrote: (files, type, folder) => `已写出 ${files}${type === null ? "" : `（${type}）`}，位于 ${folder}`,
    drift: (positions, most, mean) =>
      `漂移（在写出的文件上测量，${positions} 个文本位置）：logit 最多变化 ${most}，平均 ${mean}；`,
    likeliest: (percent, divergence) => `最可能的 token 不变的占 ${percent} %；KL 散度 ${divergence}；`,
    textLoss: (before, after) => `损失：之前 ${before}，之后 ${after}`,
    checking: (done, total) => `检查学到的内容：已回答 ${done} / ${total}`,
    checkedWith: (source, rows, from) =>
      `检查结果，${from} 的 ${rows} 行${{ "held-out": "（留出集）", training: "（训练集：没有留出行）", given: "" }[source]}：`,
    before: (loss, right) => `  导出前（f32）：损失 ${loss}${right === null ? "" : `，${right} 个回答完全正确`}`,
    reading: (program, arithmetic, loss, right, changed) =>
      `  ${program}（${arithmetic}）：损失 ${loss}${right === null ? "" : `，${right} 个回答完全正确`}，${changed} % 的回答有变化`,
    unchecked: "检查结果：没有可用来检查的数据；请用 --data 给出",
    verdict: { pass: "通过", warn: "警告", refuse: "拒绝" },
    receiptAt: (path) => `完整内容：${path}`,
  },

  data: {
    summary: "查看训练数据",
    preview: {
      summary: "模型将看到的数据",
      description: "显示模型将看到的每一行，其中要学习的部分用颜色标出。",
      file: "JSON、JSONL、CSV 或 Parquet 文件，dataset_info.json 中的名字，或配方",
      stage: "数据用于哪个训练阶段：sft、dpo、kto、rm 等；不给则从列名判断",
      cutoffLen: "训练时一行最多多少个 token（默认 2048，或配方中的值）",
      model: "用谁的分词器和对话模板；不给则用 ChatML",
      template: "不用模型自带的对话模板，改用这个",
      toolFormat: (names) => `对话模板没有工具的位置时，工具和调用怎样写：${names}`,
      datasetDir: "dataset_info.json 所在的文件夹",
      rows: "显示几行",
      size: (tokens, learnt) => `${tokens} 个 token，其中学习 ${learnt} 个`,
      green: "绿色的部分",
      between: (open, close) => `${open} ${close} 中的部分`,
      read: (rows, stage) => `${rows} 行，用于 ${stage}。`,
      lengths: ({ p50, p95, max, longer }, cutoffLen) =>
        `每行的 token 数：中位数 ${p50}，95% 分位 ${p95}，最多 ${max}；${longer} 行超过 cutoff_len = ${cutoffLen}。`,
      moreLabels: (count) => `以及另外 ${count} 个`,
      learnt: (tokens, of, mark) => `模型学习写出${mark}，共 ${of} 个 token 中的 ${tokens} 个；其余是给它的输入。`,
      inChatML: "按 ChatML 显示，一个字节算一个 token；加上 --model MODEL 则按该模型的对话写法显示。",
    },
  },

  env: {
    summary: "报告缺陷时需要的信息",
    description: "显示报告缺陷时需要的信息：版本、系统、处理器、引擎、内存。",
  },

  label: {
    summary: "判断两个回答哪个更好",
    description: "对文件中的每个提示，匿名并以随机顺序显示两个回答，并存下哪个更好。",
    file: "提示；每行已有两个回答，或由 --model 回答：训练能读的任何文件，或标注文件",
    model: "由谁回答：文件夹、GGUF 文件，或 hub 上的名字；默认：适配器自己记下的基座",
    a: "第一个适配器，或 base（不带适配器的模型）；不给 --b 时两个回答都来自它",
    b: "同一基座上的第二个适配器，或 base",
    out: "标注写入的文件；默认：输入文件名加 .labels.jsonl",
    rater: "标注者；默认：系统用户名",
    repeats: "重复出示的比例，用来看标注者前后是否一致",
    seed: "决定回答怎样采样，以及哪个回答在左边",
    temperature: "0：总取最可能的 token，只能用于两个适配器",
    examples: `
按键：a、b（该回答更好），t（不分上下），x（两个都差），n（备注），u（撤销），q（离开）。不在终端里时，输入的每一行是一次按键。
每个判断都先写到磁盘，再显示下一项；再运行同一命令就接着标注。
模型生成的回答存在标注文件旁边（.answers.jsonl），另一位标注者看到的是同样的回答。

示例：
  attune label prompts.jsonl --model SmolLM2-135M-Instruct          同一模型的两次采样
  attune label prompts.jsonl --a runs/old --b runs/new              两个适配器
  attune label answers.jsonl --rater ann                            文件里已有的回答
  attune label report prompts.labels.jsonl                          一致性、评分、能训练什么`,
    waiting: (left) => `模型正在回答：还有 ${left} 个提示。按 q 离开。`,
    number: (number, total) => `第 ${number} 项，共 ${total} 项`,
    thoughts: "［思考］",
    empty: "（空）",
    keys: "a：A 更好 · b：B 更好 · t：不分上下 · x：两个都差 · n：备注 · u：撤销 · q：离开",
    noKey: (key) => `${key} 不是 a、b、t、x、n、u、q 中的按键`,
    said: { left: "A 更好", right: "B 更好", tie: "不分上下", both_bad: "两个都差" },
    notePrompt: "备注：",
    noted: "备注将与你的判断一起保存。",
    undone: "已撤销。",
    nothingToUndo: "没有你的判断可以撤销。",
    allDone: "全部标注完了。u：撤销 · q：离开",
    summaryOf: (given, rater, path) => `${rater} 的 ${given} 个标注，在 ${path}`,
    summaryLeft: (left) => `；还剩 ${left} 项：再运行同一命令即可继续`,
    pointless: (count) => `${count} 项不显示：两个回答相同，或都为空。`,
    cut: (count, tokens) => `${count} 个回答在 ${tokens} 个 token 处截断；--max-new-tokens 可放宽。`,
    unanswered: (count, reason) => `${count} 个提示无法回答，第一个：${reason}`,
    report: {
      summary: "标注说明了什么：一致性、评分、能训练什么",
      description: "显示谁怎样标注、标注者之间是否一致、哪个模型更好及其把握，以及这些数据能训练什么。",
      store: "标注文件",
      adapter: "以文件夹名称呼这个适配器，或写成 NAME=FOLDER；可给多个",
      torn: (path, bytes) => `${path}：最后 ${bytes} 个字节是半行，可能有进程正在写入；未读取`,
      none: "还没有标注。",
      labels: (labels, items) => `${items} 项，${labels} 个标注`,
      counts: (decided, ties, bothBad) => `分出好坏 ${decided}，不分上下 ${ties}，两个都差 ${bothBad}`,
      rater: (rater, labels, seconds) => `${rater}：${labels} 个标注，每个用时中位数 ${seconds} 秒`,
      left: (share) => `  左边的回答更好：${share}`,
      consistency: (share) => `  再问一次时判断相同：${share}`,
      agreement: (items) => `一致性，在不止一人标注的 ${items} 项上`,
      raw: (share) => `  判断相同（含不分上下）：${share}`,
      rawWithoutTies: (share) => `  判断相同（两人都分出好坏时）：${share}`,
      cohen: (value) => `  Cohen 的 κ：${value}`,
      fleiss: (value, items, ratings) => `  Fleiss 的 κ：${value}，在 ${ratings} 人标注的 ${items} 项上`,
      krippendorff: (value) => `  Krippendorff 的 α：${value}（0.8 起可靠，低于 0.667 不足为据）`,
      oneRater: "没有两人都标注过的项：要看一致性，需要第二位标注者标注同一份回答。",
      undefined: "无定义，因为判断总是同一个",
      ranking: "Bradley–Terry 评分（相差 400 分即胜率比十比一），附 95 % 区间",
      rated: (rank, model, rating, low, high, wins) => `  ${rank}. ${model}  ${rating}  [${low}, ${high}]  ${wins}`,
      wins: (wins, comparisons) => `${comparisons} 次比较胜 ${wins} 次，不分上下算半次`,
      equalLength: (model, rating, low, high) => `  回答长度相同时：${model} ${rating} [${low}, ${high}]`,
      shrunk: "  有模型赢了每次比较，评分因此各加一次平局来收住：请多标注一些。",
      longer: (share) => `较长的回答更好：${share}`,
      trains: "这些数据能训练什么",
      pairs: (pairs) => `  rm、dpo、orpo、simpo：${pairs} 对`,
      single: (good, bad) => `  kto、bco：好回答 ${good} 个，坏回答 ${bad} 个`,
      unused: (ties, repeats) => `  保留但不训练：不分上下 ${ties} 个，重复出示 ${repeats} 个`,
      conflicts: (count) => `  ${count} 项会朝两个方向训练，因为标注者对哪个回答更好看法不同`,
      few: "  少于约 2000 次比较的奖励模型几乎不比瞎猜好（Gao et al. 2022）。",
      share: (percent, low, high, of) => `${percent} % [${low}, ${high}]，共 ${of} 次`,
      noCase: "还没有",
    },
  },

  elsewhere: {
    api: "兼容 OpenAI 的服务将在以后的版本提供。现在可用 attune chat（也可接在管道里），或库中的 Chat。",
    serve: "兼容 OpenAI 的服务将在以后的版本提供。现在可用 attune chat（也可接在管道里），或库中的 Chat。",
    webchat: "网页界面将在以后的版本提供。现在可用 attune chat 在终端里对话。",
    webui: "网页界面将在以后的版本提供。现在 attune train 在终端里显示训练，attune chat 与结果对话。",
    eval: "这里不运行基准测试。attune train 会评估留出的数据（eval_dataset 或 val_size），也能写出回答并打分（do_predict、predict_with_generate）。",
  },

  doctor: {
    summary: "检查这台机器，指出缺什么",
    description: "检查这台机器，指出缺什么、怎样补上。",
    whatToDo: "该做什么",
    canTrain: "这台机器可以训练。",
    cannotTrain: "现在还不能训练。",
    names: {
      node: "node",
      cpu: "处理器",
      features: "指令集",
      engine: "引擎",
      memory: "内存",
      compiler: "编译器",
      models: "模型",
      hub: "hub",
      python: "python",
      disk: "磁盘",
    },
    oldNode: (oldest) => `attune 需要 Node ${oldest} 或更新：nodejs.org`,
    unknown: "未知",
    cores: (count) => `本进程可用的核数：${count}`,
    featuresUnknown: "引擎编译之前无法得知",
    cannotLoad: "无法加载",
    bestOf: (tiers) => `取最好的：${tiers}`,
    threads: (count) => `${count} 个线程`,
    memory: (available, total) => `可用 ${available}，共 ${total}`,
    limited: (total) => `（机器有 ${total}，容器限制了用量）`,
    closePrograms: "在 1.35 亿权重的模型上做 LoRA 约需 2 GB；请关掉其他程序",
    noCompiler: (candidates) => `${candidates} 都不能运行`,
    noneNeeded: "引擎已经编译好，不需要编译器",
    modelsIn: (count) => `其中有 ${count} 个`,
    tokenSet: "已设置 HF_TOKEN",
    offline: "未询问，已设置 HF_HUB_OFFLINE",
    answers: (url) => `${url} 有应答`,
    silent: (url, seconds) => `${url} 在 ${seconds} 秒内没有应答`,
    withoutHub: "磁盘上的模型不需要它：直接给文件夹或 GGUF 文件。使用镜像时请设置 HF_ENDPOINT。",
    pythonPurpose: "只有快速上手在 hub 没有应答时用它取模型",
    noPython: "没有 python3",
    noPip: (purpose) => `没有 pip；不需要：${purpose}`,
    freeHere: (bytes) => `此文件夹所在磁盘剩余 ${bytes}`,
    freeForModels: (bytes) => `存放模型的磁盘剩余 ${bytes}`,
    freeSpace: "小模型和一次训练约占 1 GB；请腾出一些空间。",
  },
};
