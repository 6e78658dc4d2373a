/**
 * What the commands say, in English: the dictionary whose shape every other language has (`Words`). Flags and names of settings are not
 * here, nor errors and notices: they are the same in every language, so that they can be searched for.
 */
export const en = {
  program: {
    description: "Fine-tune language models on your own machine.",
    version: "print the version",
    help: "print this, or the help of a command",
    lang: "the language of what is printed: en or zh; default: as the environment says (ATTUNE_LANG, LANG)",
    examples: `
Examples:
  attune train recipe.yaml                       train as the recipe says
  attune chat --model MODEL --adapter runs/mine  talk to the result
  attune export --adapter runs/mine --to gguf --out exported
  attune data preview orders.jsonl               see what a model would learn

MODEL is a folder, a GGUF file, or a name on the hub such as HuggingFaceTB/SmolLM2-135M-Instruct.
A recipe is a YAML file with LLaMA-Factory's names; docs/recipe.md lists them all.`,
    bug: "this is a bug in attune: ",
    debug: "Set ATTUNE_DEBUG=1 and run it again to see where.",
    warning: "warning:",
    next: "Next",
  },

  /** Headings of a help page, by how commander writes them. */
  headings: {
    "Usage:": "Usage:",
    "Arguments:": "Arguments:",
    "Options:": "Options:",
    "Commands:": "Commands:",
  },

  options: {
    model: "a folder, a GGUF file, or a name on the hub",
    template: "another chat template than the adapter's or the model's own",
  },

  train: {
    summary: "fine-tune a model as a recipe says",
    description: "Fine-tune a model as a recipe says. Settings after the recipe, key=value or --key value, win over it.",
    examples: `
A recipe of the fewest settings:
  model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct
  dataset: orders.jsonl          # Alpaca, ShareGPT or OpenAI messages, JSON or JSONL
  output_dir: runs/orders

Examples:
  attune train recipe.yaml
  attune train recipe.yaml num_train_epochs=1 --lora-rank 16
  attune train recipe.yaml resume_from_checkpoint=true     go on after an interruption

Ctrl-C ends the run after the step under way and saves; a second Ctrl-C stops at once.
All settings: docs/recipe.md. Exit codes: 2 bad input, 3 diverged, 4 no space, 5 does not fit, 130 interrupted.`,
    stopping: "Stopping after this step; Ctrl-C again stops at once.",
    stage: (number: number, of: number, objective: string) => `Stage ${number} of ${of}: ${objective}`,
    stageIsDone: (path: string) => `done before, in ${path}`,
    weights: (trainable: string, all: string, share: string) => `${trainable} of ${all} weights train${share}`,
    rowsDone: (done: number, total: number, what: string) => `${what}: ${done} of ${total} rows`,
    rows: (rows: number) => `${rows} rows`,
    rowsHeldOut: (rows: number) => `, ${rows} held out`,
    steps: (steps: number, rate: string) => `; ${steps} steps, learning rate ${rate}`,
    goingOn: (step: number) => `, going on from step ${step}`,
    memory: (needed: string, available: string) => `about ${needed} of memory needed, ${available} available`,
    evaluated: (step: number, loss: string, metrics: string) => `step ${step}: held-out loss ${loss}${metrics}`,
    saved: (step: number, path: string) => `step ${step}: saved ${path}`,
    step: (step: number, total: number) => `step ${step}/${total}`,
    loss: (loss: string) => `loss ${loss}`,
    rate: (rate: string) => `lr ${rate}`,
    speed: (tokens: string) => `${tokens} tokens/s`,
    left: (duration: string) => `${duration} left`,
    done: "Done",
    stopped: "Stopped",
    after: (verb: string, duration: string) => `${verb} after ${duration}: `,
    noStep: "no step was left to do",
    heldOut: (loss: string, metrics: string) => `, held-out ${loss}${metrics}`,
    atMost: (speed: string, memory: string) => `; ${speed}, ${memory} at most.`,
    adapter: "Adapter",
    model: "Model",
    picture: "Loss",
  },

  download: {
    what: (model: string) => `downloading ${model}`,
    of: (done: string, total: string, what: string) => `${done} of ${total} ${what}`,
    baseModel: "the base model",
  },

  chat: {
    summary: "talk to a model, with or without an adapter",
    description: "Talk to a model. Without a terminal, each line of the input is one turn.",
    adapter: "the output_dir of a run, or an adapter of PEFT or AdapterHub; NAME=FOLDER, more than once, to change between them",
    system: "a system message",
    maxNewTokens: "longest answer",
    temperature: "0: always the likeliest token",
    topP: "sample from the likeliest tokens of this total probability",
    examples: `
In the chat, /help lists the commands. Ctrl-C stops an answer, twice leaves; Ctrl-D leaves.
A line that ends with \\ goes on, Alt-Enter begins a new line, text between """ and """ has several, and pasted text is not sent.

Examples:
  attune chat recipe.yaml                       what that recipe has trained, or what LLaMA-Factory's inference recipe names
  attune chat recipe.yaml temperature=0.7
  attune chat --model SmolLM2-135M-Instruct --adapter runs/orders
  attune chat --model SmolLM2-135M-Instruct --adapter a=runs/orders --adapter b=runs/poems
  echo "two teas to table 5" | attune chat --model model.gguf`,
    facts: (weights: string, compute: string, tokens: number) =>
      `${weights} weights, ${compute} products, ${tokens} tokens of context`,
    adapters: (adapters: string) => `adapter ${adapters}`,
    hint: "/help lists the commands; Ctrl-D leaves.",
    commands: `/system TEXT   sets the system message; /system shows it, /system "" takes it away
/set NAME VALUE  changes how answers are drawn, such as /set temperature 0.7; /set shows all
/save FILE     writes the conversation as training data (OpenAI messages)
/reset         forgets the conversation
/quit          leaves, as does Ctrl-D; Ctrl-C stops an answer, twice leaves
Several lines: end one with \\, press Alt-Enter, paste, or write between """ and """.`,
    adapterCommands: `/adapter NAME  changes to another adapter, /base to the model without one
/adapters      lists them`,
    reset: "The conversation begins anew.",
    systemIs: (text: string) => `system: ${text}`,
    noSystem: "There is no system message.",
    savedTo: (messages: number, file: string) => `Wrote ${messages} messages to ${file}`,
    base: "From now on the model answers without an adapter.",
    answers: (adapter: string) => `From now on ${adapter} answers.`,
    baseName: "(base)",
    noCommand: (line: string) => `no command: ${line}`,
    cutAtLimit: (tokens: number) => `[cut after ${tokens} tokens; /set max_new_tokens allows more]`,
    contextFull: (tokens: number) => `[cut: the model takes ${tokens} tokens in all; /reset begins anew]`,
    stopped: "[stopped]",
    thoughtsHeading: "[thoughts]",
    answerHeading: "[answer]",
    leaving: "Ctrl-C again, /quit or Ctrl-D leaves.",
  },

  classify: {
    summary: "tell which class texts belong to",
    description: "Print the class of each text, or of each line of the input, its score and the text.",
    model: "a classifier, or the base of the adapter: a folder, a GGUF file, or a name on the hub",
    adapter: "the output_dir of a run of stage classification, or such an adapter of PEFT's",
    json: "a JSON object a line, with the score of every class",
    examples: `
Examples:
  attune classify --model all-MiniLM-L6-v2 --adapter runs/reviews "the best soup in town"
  attune classify --model runs/reviews-full --json < reviews.txt`,
  },

  score: {
    summary: "score answers with a reward model",
    description:
      "Print what a reward model says of each answer in files of pairs (the chosen and the rejected one) or of conversations (the last answer), and where it stands.",
    model: "a reward model, or the base of the adapter: a folder, a GGUF file, or a name on the hub",
    adapter: "the output_dir of a run of stage rm, or such an adapter of LLaMA-Factory's",
    json: "a JSON object a line: chosen and rejected, or score",
    right: (right: number, pairs: number) => `The chosen answer scores higher in ${right} of ${pairs} pairs.`,
    examples: `
Examples:
  attune score runs/rm pairs.jsonl
  attune score --model Qwen/Qwen3-0.6B --adapter saves/rm --json answers.jsonl`,
  },

  export: {
    summary: "take a model to other programs: Hugging Face, GGUF, Ollama",
    description: "Merge an adapter into its base and write the model for other programs, or write the adapter alone.",
    to: (targets: string) => `one of ${targets}`,
    out: "where to write; must be new or empty",
    model: "a folder, a GGUF file, or a name on the hub; default: the base that the adapter names",
    adapter: "the output_dir of a run, or any adapter that chat takes",
    type: (types: string) => `how weights are stored: ${types}; default: bf16 for hf, q8_0 for gguf and ollama`,
    data: "rows to check with, 200 at most; default: those that the run held out, else those it trained on",
    checkRows: "how many of them the model answers, before and after; default: 50; 0: check with none",
    force: "write although the receipt refuses",
    maxDrift: "write nothing if a logit changes by more; default: what rounding to the type explains",
    ollamaFrom: "for Ollama before 0.34.1: write the adapter alone, on top of this model of Ollama's or GGUF file",
    examples: `
Formats:
  hf         a folder that transformers, vLLM and others load
  gguf       model.gguf for llama.cpp, Ollama, LM Studio and others
  gguf-lora  adapter.gguf, a LoRA for llama.cpp to put on top of the base's GGUF file
  ollama     model.gguf with a Modelfile: ollama create NAME -f FOLDER/Modelfile

Examples:
  attune export merge.yaml                      LLaMA-Factory's recipe for merging, with export_dir
  attune export --adapter runs/orders --to gguf --type q4_k_m --out exported
  attune export --adapter runs/orders --to hf --data held-out.jsonl --out exported
  attune export --adapter runs/orders --to ollama --out exported`,
    wrote: (files: string, type: string | null, folder: string) =>
      `Wrote ${files}${type === null ? "" : ` in ${type}`} to ${folder}`,
    drift: (positions: number, most: string, mean: string) =>
      `Drift, measured on what was written, at ${positions} positions of text: a logit changes by at most ${most}, by ${mean} in the mean; `,
    likeliest: (percent: string, divergence: string) =>
      `the likeliest token stays at ${percent} %; KL divergence ${divergence}; `,
    textLoss: (before: string, after: string) => `loss ${before} before, ${after} after`,
    checking: (done: number, total: number) => `checking what was learnt: ${done} of ${total} answers`,
    checkedWith: (source: "held-out" | "training" | "given", rows: number, from: string) =>
      `Receipt, ${rows} ${{ "held-out": "held-out rows", training: "rows that it trained on (none were held out)", given: "rows" }[source]} of ${from}:`,
    before: (loss: string, right: string | null) =>
      `  before, in f32: loss ${loss}${right === null ? "" : `, ${right} answers exact`}`,
    reading: (program: string, arithmetic: string, loss: string, right: string | null, changed: string) =>
      `  ${program} (${arithmetic}): loss ${loss}${right === null ? "" : `, ${right} answers exact`}, ${changed} % of the answers changed`,
    unchecked: "Receipt: there were no rows to check with; give some with --data",
    verdict: { pass: "passes", warn: "warning", refuse: "REFUSED" },
    receiptAt: (path: string) => `All of it: ${path}`,
  },

  data: {
    summary: "look at training data",
    preview: {
      summary: "rows as the model will see them",
      description: "Print rows as the model will see them, the part it learns from in colour.",
      file: "JSON, JSONL, CSV or Parquet, a name in dataset_info.json, or a recipe",
      stage: "the stage that the rows are for: sft, dpo, kto, rm …; without it, found out from the columns",
      cutoffLen: "longest row of training, in tokens (default: 2048, or the recipe's)",
      model: "whose tokenizer and chat template to use; without one, ChatML",
      template: "another chat template than the model's own",
      toolFormat: (names: string) => `how tools and calls are written where the chat template has no place for them: ${names}`,
      datasetDir: "where dataset_info.json is (default: data, or the recipe's)",
      rows: "how many rows",
      size: (tokens: number, learnt: number) => `${tokens} tokens, ${learnt} of them learnt`,
      green: "green",
      between: (open: string, close: string) => `in ${open} ${close}`,
      read: (rows: number, stage: string) => `${rows} rows, read for ${stage}.`,
      lengths: ({ p50, p95, max, longer }: { p50: number; p95: number; max: number; longer: number }, cutoffLen: number) =>
        `Tokens of a row: ${p50} in the middle, ${p95} at 95 %, ${max} at most; ${longer} rows are longer than cutoff_len = ${cutoffLen}.`,
      moreLabels: (count: number) => `and ${count} more`,
      learnt: (tokens: number, of: number, mark: string) =>
        `The model learns to write what is ${mark}, ${tokens} of ${of} tokens; the rest is given to it.`,
      inChatML: "Shown in ChatML, a token for each byte; with --model MODEL, as that model writes chats.",
    },
  },

  env: {
    summary: "what a bug report needs",
    description: "Print what a report of a bug needs: versions, system, CPU, engine, memory.",
  },

  label: {
    summary: "say which of two answers is better",
    description: "Show two answers to each prompt of a file, blind and in random order, and store which one is better.",
    file: "prompts, with two answers each or to be answered by --model: any file that training reads, or a label store",
    model: "who answers: a folder, a GGUF file, or a name on the hub; default: the base that the adapters name",
    a: "the first adapter, or base for the model without one; without --b, both answers are its",
    b: "the second adapter on the same base, or base",
    out: "the label store to add to; default: the file's name with .labels.jsonl",
    rater: "who labels; default: the name of the system's user",
    repeats: "share of the items that are shown a second time, to see how steady a rater is",
    seed: "draws the answers, and what stands left",
    temperature: "0: always the likeliest token, for two adapters only",
    examples: `
Keys: a and b (that answer is better), t (tie), x (both are bad), n (note), u (undo), q (quit). Without a terminal, a line of
the input each. Every answer is on the disk before the next item is shown; the same command goes on where one stopped.
Answers that a model draws are kept beside the store (.answers.jsonl), so that another rater gets the same ones.

Examples:
  attune label prompts.jsonl --model SmolLM2-135M-Instruct          two samples of one model
  attune label prompts.jsonl --a runs/old --b runs/new              of two adapters
  attune label answers.jsonl --rater ann                            answers that are in the file
  attune label report prompts.labels.jsonl                          agreement, ratings, what it will train`,
    waiting: (left: number) => `The model is answering: ${left} prompts to go. q leaves.`,
    number: (number: number, total: number) => `${number} of ${total}`,
    thoughts: "[thoughts]",
    empty: "(empty)",
    keys: "a: A is better · b: B is better · t: tie · x: both bad · n: note · u: undo · q: quit",
    noKey: (key: string) => `${key} is none of a, b, t, x, n, u, q`,
    said: { left: "A is better", right: "B is better", tie: "tie", both_bad: "both bad" },
    notePrompt: "note: ",
    noted: "The note goes with your answer.",
    undone: "Taken back.",
    nothingToUndo: "There is nothing of yours to take back.",
    allDone: "Everything is labelled. u: undo · q: quit",
    summaryOf: (given: number, rater: string, path: string) => `${given} labels by ${rater} in ${path}`,
    summaryLeft: (left: number) => `; ${left} left: the same command goes on`,
    pointless: (count: number) => `${count} items are not shown: both answers say the same, or nothing.`,
    cut: (count: number, tokens: number) => `${count} answers were cut after ${tokens} tokens; --max-new-tokens allows more.`,
    unanswered: (count: number, reason: string) => `${count} prompts could not be answered, the first: ${reason}`,
    report: {
      summary: "what labels say: agreement, ratings, what they will train",
      description:
        "Print who labelled how, how far raters agree, which model is better and how certain that is, and what the rows will train.",
      store: "label stores",
      adapter: "an adapter to call by its folder's name, or NAME=FOLDER; more than once",
      torn: (path: string, bytes: number) =>
        `${path}: the last ${bytes} bytes are half a row, which a process may be writing; they are not read`,
      none: "There are no labels yet.",
      labels: (labels: number, items: number) => `${labels} labels of ${items} items`,
      counts: (decided: number, ties: number, bothBad: number) =>
        `one answer better: ${decided}, ties: ${ties}, both bad: ${bothBad}`,
      rater: (rater: string, labels: number, seconds: string) => `${rater}: ${labels} labels, ${seconds} s each in the middle`,
      left: (share: string) => `  the left answer is the better one: ${share}`,
      consistency: (share: string) => `  says the same when asked again: ${share}`,
      agreement: (items: number) => `Agreement, on the ${items} items of more than one rater`,
      raw: (share: string) => `  the same, ties included: ${share}`,
      rawWithoutTies: (share: string) => `  the same, where both found one better: ${share}`,
      cohen: (value: string) => `  Cohen's kappa: ${value}`,
      fleiss: (value: string, items: number, ratings: number) =>
        `  Fleiss' kappa: ${value}, on the ${items} items of ${ratings} raters`,
      krippendorff: (value: string) => `  Krippendorff's alpha: ${value} (reliable from 0.8, too little below 0.667)`,
      oneRater: "No item has two raters: agreement needs a second one, on the same file of answers.",
      undefined: "not defined, as only one thing is ever said",
      ranking: "Bradley–Terry ratings (400 points: odds of ten to one), with intervals of 95 %",
      rated: (rank: number, model: string, rating: string, low: string, high: string, wins: string) =>
        `  ${rank}. ${model}  ${rating}  [${low}, ${high}]  ${wins}`,
      wins: (wins: string, comparisons: string) => `${wins} wins of ${comparisons}, a tie as half`,
      equalLength: (model: string, rating: string, low: string, high: string) =>
        `  with answers of equal length: ${model} ${rating} [${low}, ${high}]`,
      shrunk: "  Somebody wins every comparison, so the ratings are held back by a tie each: label more.",
      longer: (share: string) => `The longer answer is the better one: ${share}`,
      trains: "What the rows will train",
      pairs: (pairs: number) => `  rm, dpo, orpo, simpo: ${pairs} pairs`,
      single: (good: number, bad: number) => `  kto, bco: ${good} good and ${bad} bad answers`,
      unused: (ties: number, repeats: number) => `  kept and not trained: ${ties} ties, ${repeats} second showings`,
      conflicts: (count: number) => `  ${count} items train in both directions, as raters differ on which answer is better`,
      few: "  Reward models of fewer than about 2,000 comparisons are hardly better than chance (Gao et al. 2022).",
      share: (percent: string, low: string, high: string, of: number) => `${percent} % [${low}, ${high}] of ${of}`,
      noCase: "no case yet",
    },
  },

  /** What does here what other commands of LLaMA-Factory's do, or when it comes. */
  elsewhere: {
    api: "an OpenAI-compatible server comes with a later release. Today: attune chat, in a pipe too, or Chat of the library.",
    serve: "an OpenAI-compatible server comes with a later release. Today: attune chat, in a pipe too, or Chat of the library.",
    webchat: "a web page comes with a later release. Today: attune chat talks on the terminal.",
    webui:
      "a web page comes with a later release. Today: attune train shows a run on the terminal, attune chat talks to the result.",
    eval: "benchmarks are not run here. attune train evaluates held-out rows (eval_dataset or val_size), and writes and scores answers to them (do_predict, predict_with_generate).",
  },

  doctor: {
    summary: "check this machine, and say what is missing",
    description: "Check this machine, and say what is missing and how to get it.",
    whatToDo: "What to do",
    canTrain: "This machine can train.",
    cannotTrain: "Nothing can train here yet.",
    names: {
      node: "node",
      cpu: "cpu",
      features: "features",
      engine: "engine",
      memory: "memory",
      compiler: "compiler",
      models: "models",
      hub: "hub",
      python: "python",
      disk: "disk",
    },
    oldNode: (oldest: string) => `attune needs Node ${oldest} or newer: nodejs.org`,
    unknown: "unknown",
    cores: (count: number) => `cores this process may use: ${count}`,
    featuresUnknown: "not known before the engine is built",
    cannotLoad: "cannot be loaded",
    bestOf: (tiers: string) => `the best of ${tiers}`,
    threads: (count: number) => `${count} threads`,
    memory: (available: string, total: string) => `${available} available of ${total}`,
    limited: (total: string) => `, limited from ${total}`,
    closePrograms: "LoRA on a model of 135 M weights takes about 2 GB; close other programs",
    noCompiler: (candidates: string) => `none of ${candidates} runs`,
    noneNeeded: "the engine is built, so none is needed",
    modelsIn: (count: number) => `${count} in it`,
    tokenSet: "HF_TOKEN is set",
    offline: "not asked, HF_HUB_OFFLINE is set",
    answers: (url: string) => `${url} answers`,
    silent: (url: string, seconds: number) => `${url} does not answer within ${seconds} s`,
    withoutHub: "Models on disk work without it: give their folder or GGUF file. Behind a mirror, set HF_ENDPOINT.",
    pythonPurpose: "only the quickstart wants it, to get its model where no hub answers",
    noPython: "no python3",
    noPip: (purpose: string) => `no pip; not needed: ${purpose}`,
    freeHere: (bytes: string) => `${bytes} free in this folder`,
    freeForModels: (bytes: string) => `${bytes} free where models are stored`,
    freeSpace: "A small model and its run take about 1 GB; free some space.",
  },
};

/** A dictionary of the commands' texts, as every language has it. */
export type Words = typeof en;
