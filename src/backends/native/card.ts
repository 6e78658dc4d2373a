import { basename } from "node:path";
import { hubName, licenseOf, type ModelCard } from "../../io/model-card.js";
import type { ModelFiles } from "../../io/model-files.js";
import { adapterNames, type Recipe } from "../../recipe/schema.js";
import type { RunResults } from "../../runs/events.js";
import type { Tuning } from "../../tuners/tuner.js";
import type { Reference } from "./reference.js";
import type { RunData } from "./run-data.js";

/** What a card tells of. */
export interface CardSubject {
  readonly recipe: Recipe;
  readonly tuning: Tuning;
  /** The adapters that were merged first, as they lie in the folder, in their order. */
  readonly baseAdapters: readonly string[];
  readonly files: ModelFiles;
  readonly data: RunData;
  readonly reference: Reference | null;
  readonly results: RunResults;
  readonly steps: number;
}

/** The card of what a run leaves: what it was made of and how, what came out, and how to load it. */
export async function cardOf({
  recipe,
  tuning,
  baseAdapters,
  files,
  data,
  reference,
  results,
  steps,
}: CardSubject): Promise<ModelCard> {
  const isClassifier = data.task.taskType === "SEQ_CLS";
  const library = tuning.adapter?.library.name ?? "transformers";
  const base = hubName(recipe.model_name_or_path) ?? hubName(String(files.config._name_or_path ?? ""));
  const shownBase = base ?? basename(recipe.model_name_or_path);
  const license = await licenseOf(files);
  const sets = recipe.dataset.map((name) => hubName(name) ?? basename(name));
  const number = (value: number) => String(Number(value.toPrecision(4)));
  const rows: [string, string][] = [
    ["base model", `${shownBase}${license === null ? "" : `, licence ${license}`}`],
    ["method", recipe.finetuning_type],
    ["objective", recipe.stage],
    ...(reference === null
      ? []
      : ([
          ["compared with", reference.name],
          ["sha256 of what it was compared with", `\`${reference.sha256}\``],
        ] as [string, string][])),
    ["data", `${sets.join(", ")}: ${data.trainRows.length} rows trained, ${data.evalRows.length} held out`],
    ["sha256 of the rows that trained, as tokens", `\`${data.digest}\``],
    [
      "steps",
      `${steps} of ${recipe.per_device_train_batch_size} × ${recipe.gradient_accumulation_steps} rows, ${number(results.epoch)} epochs`,
    ],
    ["learning rate", `${recipe.learning_rate}, ${recipe.lr_scheduler_type}`],
    ["seed", String(recipe.seed)],
    ...Object.entries(recipe.tuner)
      .filter(([, value]) => value !== null && value !== false)
      .map(([key, value]): [string, string] => [key, `\`${JSON.stringify(value)}\``]),
    ["training loss", number(results.train_loss)],
    ...(results.eval_loss === undefined ? [] : [["held-out loss", number(results.eval_loss)] as [string, string]]),
    ...numbersOf(results.eval_metrics ?? {}).map(([key, value]): [string, string] => [key, number(value)]),
  ];
  if (baseAdapters.length > 0)
    rows.splice(2, 0, ["trained over the adapters", baseAdapters.map((name) => `\`${name}\``).join(", ")]);
  if (recipe.adapter_name_or_path !== null)
    rows.splice(2, 0, [
      recipe.create_new_adapter ? "a new adapter over" : "went on from the adapter",
      adapterNames(recipe.adapter_name_or_path)
        .map((path) => basename(path))
        .join(", "),
    ]);
  const cell = (text: string) => text.replaceAll("|", "\\|").replaceAll("\n", " ");
  const body = [
    `# ${cell(basename(recipe.output_dir))}`,
    `${tuning.adapter === undefined ? "A model" : "An adapter"} trained with attune from ${cell(shownBase)}.`,
    `| | |\n|---|---|\n${rows.map(([key, value]) => `| ${cell(key)} | ${cell(value)} |`).join("\n")}`,
    "All settings stand in `recipe.yaml`, all results in `all_results.json`.",
    "## How to load it",
    attuneUse(tuning.adapter !== undefined, isClassifier, shownBase),
    tuning.adapter?.library.loading({ isClassifier, baseAdapters }) ?? wholeModelLoading(isClassifier),
    license === null
      ? "The licence of the base model holds for what was made from it; its files here do not name one."
      : `The base model's licence is ${license}; it holds for what was made from it, too.`,
  ].join("\n\n");
  const pipeline = isClassifier ? "text-classification" : "text-generation";
  const tags = ["attune", recipe.finetuning_type, recipe.stage];
  const datasets = recipe.dataset.flatMap((name) => hubName(name) ?? []);
  return { baseModel: base, library, pipeline, tags, license, datasets, body: `${body}\n` };
}

/** Numbers of metrics, nested ones by their path. */
function numbersOf(metrics: object, before = ""): [string, number][] {
  return Object.entries(metrics).flatMap(([key, value]: [string, unknown]) =>
    typeof value === "number"
      ? [[before + key, value]]
      : typeof value === "object" && value
        ? numbersOf(value, `${before}${key} `)
        : [],
  );
}

function attuneUse(isAdapter: boolean, isClassifier: boolean, base: string): string {
  const from = isAdapter ? `--model ${base} --adapter path/to/this/folder` : "--model path/to/this/folder";
  const command = `\`\`\`sh\nnpx attune ${isClassifier ? "classify" : "chat"} ${from}\n\`\`\``;
  if (isClassifier) return command;
  const options = isAdapter
    ? `{ model: ${JSON.stringify(base)}, adapter: "path/to/this/folder" }`
    : '{ model: "path/to/this/folder" }';
  const code = [
    'import { Chat } from "attune";',
    "",
    `const chat = await Chat.open(${options});`,
    'for await (const piece of chat.reply([{ role: "user", content: "Hello!" }])) process.stdout.write(piece);',
    "chat.close();",
  ].join("\n");
  return `${command}\n\n\`\`\`ts\n${code}\n\`\`\``;
}

/** Markdown for a card: with which releases, and how, Python loads a whole model. */
export function wholeModelLoading(isClassifier: boolean): string {
  const kind = isClassifier ? "AutoModelForSequenceClassification" : "AutoModelForCausalLM";
  const load = [
    `from transformers import ${kind}, AutoTokenizer`,
    "",
    'folder = "path/to/this/folder"',
    "tokenizer = AutoTokenizer.from_pretrained(folder)",
    `model = ${kind}.from_pretrained(folder)`,
  ];
  const use = isClassifier
    ? ['logits = model(**tokenizer("Hello!", return_tensors="pt")).logits']
    : [
        'messages = [{"role": "user", "content": "Hello!"}]',
        'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
        "answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
      ];
  return `Read by transformers (5.24 was tested):\n\n\`\`\`python\n${[...load, ...use].join("\n")}\n\`\`\``;
}
