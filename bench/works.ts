import { tmpdir } from "node:os";
import { join } from "node:path";
import { dtypes } from "../src/engine/dtype.js";

/** What the works need to know of the machine and of the command line. */
export interface Setup {
  /** A folder or GGUF file of attune's; with peers, a Hugging Face folder that both read. */
  readonly model: string;
  /** The same model in 4 bits, for decoding. */
  readonly gguf: string;
  /** An Alpaca file. */
  readonly data: string | undefined;
  /** A file of pairs of answers, in LLaMA-Factory's form. */
  readonly pairs: string | undefined;
  readonly threads: number;
  /** Whether the CPU multiplies bf16; else nobody is asked to. And whether it does so in tiles. */
  readonly hasBf16: boolean;
  readonly hasAmx: boolean;
  /** Python of the peers' venv, and the folder of their scripts. */
  readonly peers: { readonly python: string; readonly scripts: string } | undefined;
  /** The folder where node-llama-cpp is installed. */
  readonly llama: string | undefined;
  /** Time torch.compile as well: minutes. */
  readonly compile: boolean;
  /** Fewer steps. */
  readonly isQuick: boolean;
}

/** A process that prints one JSON line. */
export interface Command {
  readonly label: string;
  readonly argv: readonly [program: string, ...args: string[]];
  readonly env?: Readonly<Record<string, string>>;
}

/** PyTorch on glibc's allocator as it is loses up to a third of its time in page faults. */
const keepsPages = {
  MALLOC_MMAP_THRESHOLD_: "8589934592",
  MALLOC_TRIM_THRESHOLD_: "17179869184",
  MALLOC_TOP_PAD_: "268435456",
};

/** A bound, at least or at most as the measure says: on attune's own figure, on its ratio to the peer's, on its share of the machine's limit. */
export type Target = { readonly value: number } | { readonly ratio: number } | { readonly share: number };

/** One figure of the JSON lines. */
export interface Measure {
  readonly what: string;
  readonly key: string;
  readonly better: "more" | "less";
  readonly targets?: readonly Target[];
  /** Key of the share of the machine's limit, which attune's commands print. */
  readonly share?: string;
}

/**
 * Work that attune and its peers do, each in every number type that it has there; the best by the first measure are compared. Where attune
 * is held against itself, its own command is the peer.
 */
export interface Work {
  readonly name: string;
  /** Runs once, before all others, and is not measured. */
  readonly before?: Command;
  readonly attune: readonly Command[];
  readonly peers: readonly Command[];
  readonly measures: readonly [Measure, ...Measure[]];
}

/** The products of a forward pass of SmolLM2-135M over 4 × 512 tokens: COUNTxMxNxK. The last are the output projection's chunks of rows. */
const modelProducts = ["60x2048x576x576", "60x2048x192x576", "60x2048x1536x576", "30x2048x576x1536", "6x341x49152x576"];
/** Of a layer like its own, but whole blocks of every type fit in a row. */
const blockProducts = ["2x256x768x768", "2x256x2048x768", "1x256x768x2048"];

export function worksFor(setup: Setup): Work[] {
  const { model, gguf, data, pairs, hasBf16, hasAmx, isQuick, peers } = setup;
  const types = hasBf16 ? ["f32", "bf16"] : ["f32"];
  const steps = isQuick ? "2" : "4";

  const attune = (label: string, entry: string, ...args: string[]): Command => ({
    label,
    argv: [process.execPath, join(import.meta.dirname, `${entry}.js`), ...args],
  });
  const step = (label: string, ...args: string[]) => attune(label, "step", "--model", model, "--steps", steps, ...args);
  const train = (label: string, ...settings: string[]) => attune(label, "train", `model_name_or_path=${model}`, ...settings);
  const products = (label: string, list: readonly string[], weights: string, compute: string) =>
    attune(label, "products", "--weights", weights, "--compute", compute, ...list);

  const shared = ["--model", model, "--threads", `${setup.threads}`];
  /** The peer's script, or nothing without peers. */
  const peer = (label: string, script: string, ...args: string[]): Command[] =>
    peers === undefined
      ? []
      : [{ label, argv: [peers.python, join(peers.scripts, script), ...shared, ...args], env: keepsPages }];
  const peft = (label: string, ...args: string[]) => peer(label, "peft_step.py", "--steps", steps, ...args);
  const peftTypes = (...args: string[]) => types.flatMap((type) => peft(`PEFT ${type}`, "--dtype", type, ...args));
  const llama = (...args: string[]): Command[] =>
    setup.llama === undefined
      ? []
      : [attune("llama.cpp", "llama", "--llama", setup.llama, "--model", gguf, "--threads", `${setup.threads}`, ...args)];

  const rate = (targets: readonly Target[] = []): Measure => ({
    ...{ what: "tokens/s", key: "tokens_per_second", better: "more" },
    ...{ targets, share: "share" },
  });
  const peak = (...targets: Target[]): Measure => ({ what: "peak RSS, GB", key: "peak_rss_gb", better: "less", targets });

  const training: Work[] = [
    {
      name: "LoRA step, 4 × 512",
      attune: types.map((type) => step(type, "--compute", type)),
      peers: peftTypes(),
      measures: [rate(hasBf16 ? [{ ratio: 1.5 }] : [{ ratio: 2 }, { share: 0.75 }]), peak({ ratio: 0.25 })],
    },
    {
      name: "LoRA step, 4 × 512, against torch.compile",
      attune: setup.compile ? types.map((type) => step(type, "--compute", type)) : [],
      peers: peftTypes("--compile"),
      measures: [rate([{ ratio: 1.75 }]), peak()],
    },
    {
      name: "LoRA step, 4 × 512, checkpointed against not",
      attune: [step("checkpointed", "--checkpointing")],
      peers: [step("not")],
      measures: [rate([{ ratio: 0.74 }]), peak({ value: 0.8 })], // 1.35 times the time
    },
    {
      name: "LoRA step, 4 × 512, both checkpointed",
      attune: types.map((type) => step(type, "--compute", type, "--checkpointing")),
      peers: peftTypes("--checkpointing"),
      measures: [rate(), peak()],
    },
    {
      name: "full step, 4 × 512",
      attune: types.map((type) => step(type, "--compute", type, "--method", "full")),
      peers: peftTypes("--method", "full"),
      measures: [rate([{ ratio: 1.9 }]), peak({ ratio: 0.5 })],
    },
    {
      name: "full step, 4 × 512, moments in 8 bits",
      attune: types.map((type) => step(type, "--compute", type, "--method", "full", "--optim", "adamw_8bit")),
      peers: peftTypes("--method", "full"),
      measures: [rate([{ ratio: 1.9 }]), peak({ ratio: 0.5 })],
    },
  ];

  const qlora: Work[] = [
    {
      name: "QLoRA step (nf4, double quantization), 4 × 512",
      attune: types.map((type) => step(type, "--compute", type, "--method", "qlora")),
      peers: peft("bitsandbytes", "--method", "qlora"),
      measures: [rate([{ ratio: 3 }]), peak()],
    },
    {
      name: "QLoRA step against LoRA, 4 × 512",
      attune: [step("QLoRA", "--method", "qlora")],
      peers: [step("LoRA")],
      measures: [rate([{ ratio: 0.9 }]), peak({ ratio: 1 })],
    },
  ];

  const commands: Work[] =
    data === undefined
      ? []
      : [
          {
            name: "SFT, Alpaca, batch 8, cutoff 512",
            attune: [
              train(
                "",
                `dataset=${data}`,
                "max_samples=1000",
                "cutoff_len=512",
                "per_device_train_batch_size=8",
                `max_steps=${isQuick ? 2 : 16}`,
              ),
            ],
            peers: [false, true].flatMap((isPacked) =>
              peer(
                isPacked ? "TRL packed" : "TRL padded",
                "trl_sft.py",
                ...["--data", data, "--rows", "1000", "--batch", "8", "--max-length", "512", "--steps", isQuick ? "1" : "4"],
                ...(isPacked ? ["--packing"] : []),
              ),
            ),
            measures: [
              { what: "useful tokens/s", key: "useful_tokens_per_second", better: "more", targets: [{ ratio: 6 }] },
              peak({ ratio: 0.125 }),
              { what: "seconds to the first step", key: "seconds_to_first_step_done", better: "less" },
            ],
          },
          {
            name: "command of one step, 1 × 256",
            attune: [train("", `dataset=${data}`, "max_samples=200", "packing=true", "cutoff_len=256", "max_steps=1")],
            peers: peer("TRL", "trl_sft.py", "--data", data, "--batch", "1", "--max-length", "256", "--steps", "1"),
            measures: [
              { what: "seconds to the first step", key: "seconds_to_first_step_done", better: "less", targets: [{ value: 4 }] },
              { what: "seconds of all", key: "command_s", better: "less" },
            ],
          },
        ];

  /** Both sides train on what TRL makes of the data, which a run that computes nothing writes down. */
  const besideTrl = (
    name: string,
    script: string,
    [entry, option]: readonly [string, string],
    trlArgs: readonly string[],
    measures: Work["measures"],
  ): Work[] => {
    const dump = join(tmpdir(), `attune-bench-${name.replaceAll(/\W+/g, "-")}.jsonl`);
    const trl = (label: string, ...args: string[]) => peer(label, script, ...trlArgs, ...args);
    const [before] = trl("what TRL trains on", "--dry", "--dump", dump);
    return before === undefined
      ? []
      : [
          {
            ...{ name, before, measures },
            attune: types.map((type) => attune(type, entry, "--model", model, option, dump, "--compute", type)),
            peers: types.flatMap((type) => trl(`TRL ${type}`, "--dtype", type)),
          },
        ];
  };
  const trainedSteps = isQuick ? "2" : "4";
  const preference: Work[] =
    pairs === undefined
      ? []
      : ["512", "1024"].flatMap((cutoff) =>
          besideTrl(
            `DPO, batch 4, cutoff ${cutoff}`,
            "trl_dpo.py",
            ["preference", "--pairs"],
            ["--data", pairs, "--max-length", cutoff, "--steps", trainedSteps],
            [
              { what: "pairs/s", key: "pairs_per_second", better: "more", targets: [{ ratio: 4 }], share: "share" },
              peak({ ratio: 1 / 6 }),
            ],
          ),
        );
  const policy: Work[] =
    data === undefined
      ? []
      : besideTrl(
          "GRPO, 2 prompts × 8 answers × 64 tokens",
          "trl_grpo.py",
          ["policy", "--prompts"],
          ["--data", data, "--steps", trainedSteps],
          [
            { what: "answer tokens/s", key: "completion_tokens_per_second", better: "more", targets: [{ ratio: 4 }] },
            { what: "seconds of a round's update", key: "update_s", better: "less", share: "update_share" },
            { what: "seconds of a roll-out", key: "rollout_s", better: "less", share: "rollout_share" },
            peak(),
          ],
        );

  const gemms: Work[] = [
    ...types.map(
      (compute): Work => ({
        name: `GEMM at the model's shapes, ${compute}`,
        attune: [products("", modelProducts, "bf16", compute)],
        peers: [],
        measures: productMeasures(compute === "f32" ? [{ share: 0.85 }] : hasAmx ? [{ share: 0.6 }] : []),
      }),
    ),
    ...fourBitTypes().flatMap((weights) =>
      types.map(
        (compute): Work => ({
          name: `GEMM with ${weights} weights against bf16, ${compute}`,
          attune: [products("", blockProducts, weights, compute)],
          peers: [products("bf16", blockProducts, "bf16", compute)],
          measures: productMeasures([{ ratio: 0.9 }]),
        }),
      ),
    ),
  ];

  const newTokens = isQuick ? "16" : "64";
  const decode = (label: string, model: string, batch: number, ...args: string[]) =>
    attune(label, "decode", "--model", model, "--batch", `${batch}`, "--new-tokens", newTokens, ...args);
  const generation: Work[] = [
    {
      name: "decode 4 bits, batch 1, after 512 tokens",
      attune: [decode("", gguf, 1, "--prompt-tokens", "512")],
      peers: llama("--prompt-tokens", "512", "--new-tokens", newTokens),
      measures: [
        { what: "tokens/s", key: "decode_tokens_per_second", better: "more", targets: [{ ratio: 1 }], share: "share" },
        { what: "prompt tokens/s", key: "prompt_tokens_per_second", better: "more", targets: [{ ratio: 1 }] },
        peak(),
      ],
    },
    ...[1, 8].map(
      (batch): Work => ({
        name: `generate, batch ${batch}`,
        attune: [...(model === gguf ? [] : [decode("as stored", model, batch)]), decode("4 bits", gguf, batch)],
        peers: peer("transformers f32", "hf_generate.py", "--batch", `${batch}`, "--new-tokens", newTokens),
        measures: [rate(batch === 8 ? [{ ratio: 4 }] : [])],
      }),
    ),
  ];

  const longest = isQuick ? 2048 : 4096;
  const growth: Work[] = [
    {
      name: `growth: one sequence of ${longest} against ${longest / 512} of 512`,
      attune: [step("", "--rows", "1", "--tokens", `${longest}`)],
      peers: [step(`${longest / 512} × 512`, "--rows", `${longest / 512}`, "--tokens", "512")],
      measures: [rate([{ ratio: 0.6 }]), peak()],
    },
    {
      name: `growth: one sequence of ${longest} against one of ${longest / 2}`,
      attune: [step("", "--rows", "1", "--tokens", `${longest}`)],
      peers: [step(`1 × ${longest / 2}`, "--rows", "1", "--tokens", `${longest / 2}`)],
      measures: [rate(), peak({ ratio: 2 })],
    },
    ...(isQuick ? [4] : [4, 16, 64]).map(
      (rows): Work => ({
        name: `growth: ${rows} rows a step against one`,
        attune: [step("", "--rows", `${Math.min(rows, 16)}`, "--accumulate", `${Math.ceil(rows / 16)}`, "--steps", "2")],
        peers: [step("1 row", "--rows", "1")],
        measures: [rate([{ ratio: 0.9 }]), peak()],
      }),
    ),
  ];

  return [...training, ...qlora, ...commands, ...preference, ...policy, ...gemms, ...generation, ...growth].filter(
    ({ attune }) => attune.length > 0,
  );
}

function productMeasures(targets: readonly Target[]): [Measure, Measure] {
  return [
    { what: "y = x Wᵀ, GFLOP/s", key: "forward_gflops", better: "more", targets, share: "forward_share" },
    { what: "dx = dy W, GFLOP/s", key: "input_grad_gflops", better: "more", targets, share: "input_grad_share" },
  ];
}

/** With the scale of its block, a number of such a type takes 4 to 5 bits. */
function fourBitTypes(): string[] {
  return Object.entries(dtypes)
    .filter(([, { block, bytes }]) => (8 * bytes) / block <= 5)
    .map(([name]) => name);
}
