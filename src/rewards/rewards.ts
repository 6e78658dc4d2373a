import { z } from "zod";
import { ConfigError } from "../errors.js";
import { closest } from "../text/closest.js";
import { api } from "./endpoint.js";
import { functionReward, moduleReward } from "./functions.js";
import { multi, refusedGraders, stringCheck, textSimilarity } from "./graders.js";
import type { RewardKind, RewardTools } from "./kind.js";
import type { Reward } from "./reward.js";
import { type RewardModelSettings, rewardModel, rewardModelItem, rewardModelKeys } from "./reward-model.js";
import { contains, exactMatch, format, json, length, numeric, regex, similarity } from "./rules.js";

/** Every kind of reward that a recipe may name. Adding one is a line here. */
export const rewardKinds = [
  regex,
  exactMatch,
  contains,
  json,
  length,
  format,
  similarity,
  numeric,
  stringCheck,
  textSimilarity,
  multi,
  rewardModel,
  api,
  moduleReward,
  functionReward,
] as readonly RewardKind[];

/** A reward as a recipe asks for it: what all kinds have, and beside it the settings of its own. */
export interface RewardItem {
  readonly type: string;
  readonly name: string;
  readonly weight: number;
  readonly [setting: string]: unknown;
}

/** What an item of any kind may say, beside its type and the kind's own settings. */
const Common = z.strictObject({
  name: z
    .string()
    .regex(/^[\p{L}\p{N}_.-]+$/u, "expected letters, digits, _, - and .")
    .max(100)
    .optional()
    .describe("what metrics call it; its type where not given"),
  weight: z
    .number()
    .refine((weight) => weight !== 0, "0 would change nothing: leave the reward out")
    .default(1)
    .describe("what its score is multiplied by in the sum of all; below 0: the lower the better"),
});

/** The settings of stages that learn from rewards that say who judges. */
export const rewardKeys = {
  ...rewardModelKeys,
  rewards: z
    .array(z.record(z.string(), z.unknown()))
    .default([])
    .transform((items, context): RewardItem[] => {
      const checked = items.map((item, i) => checkItem(item, `item ${i + 1}`));
      const named = withNames(checked.filter((one) => typeof one !== "string"));
      const problems = [...checked.filter((one) => typeof one === "string"), ...twiceNamed(named)];
      for (const message of problems) context.addIssue({ code: "custom", message, params: { isSaid: true } });
      return problems.length > 0 ? z.NEVER : named;
    })
    .describe(
      `what judges answers: a list of rewards, each with its type (${rewardKinds.map(({ type }) => type).join(", ")}), perhaps a name and a weight, and settings of its own; docs/rewards.md`,
    ),
};

/** What a recipe says of its rewards. */
export type RewardSettings = { readonly rewards: readonly RewardItem[] } & Partial<RewardModelSettings>;

/** All that judges: the rewards of the list, and the reward model that LLaMA-Factory's keys name. Throws ConfigError. */
export function rewardItems({ rewards, ...ofModel }: RewardSettings): readonly RewardItem[] {
  const model = rewardModelItem(ofModel);
  if (model === null) return rewards;
  if (rewards.some(({ name }) => name === model.name))
    throw new ConfigError(`rewards: one is called ${model.name}, as what reward_model names: call it otherwise`);
  return [...rewards, model];
}

interface Unnamed {
  readonly type: string;
  readonly name?: string | undefined;
  readonly weight: number;
  readonly [setting: string]: unknown;
}

/** The item with its defaults written out, or what is wrong with it. */
function checkItem(item: Readonly<Record<string, unknown>>, at: string): Unnamed | string {
  const { type } = item;
  const kind = rewardKinds.find((candidate) => candidate.type === type);
  if (kind === undefined) {
    if (typeof type === "string" && Object.hasOwn(refusedGraders, type))
      return `${at}: ${type} is not there: ${refusedGraders[type]}`;
    const types = rewardKinds.map((candidate) => candidate.type);
    const near = typeof type === "string" ? closest(type, types) : undefined;
    const got = type === undefined ? "there is none" : `got ${JSON.stringify(type)?.slice(0, 80)}`;
    return `${at}: type: expected one of ${types.join(", ")}; ${got}${near ? `. Did you mean "${near}"?` : ""}`;
  }
  const { name, weight, type: _, ...own } = item;
  const set = Object.fromEntries(Object.entries(own).filter(([, value]) => value !== null));
  const results = [
    Common.safeParse({ name: name ?? undefined, weight: weight ?? undefined }),
    kind.config.safeParse(set),
  ] as const;
  const issues = results.flatMap(({ error }) => error?.issues ?? []);
  const issue = issues.find(({ code }) => code === "unrecognized_keys") ?? issues[0]; // a wrong name explains what is missing
  if (issue !== undefined) return `${at} (${kind.type}): ${inWords(issue, kind)}`;
  const [ofAll, ofKind] = results.map(({ data }) => data) as [z.output<typeof Common>, object];
  return { type: kind.type, ...ofAll, ...ofKind };
}

/** Of a value that could be several things, the issue that lies deepest in it: what came nearest to being one of them. */
function deepest(issue: z.core.$ZodIssue): z.core.$ZodIssue {
  if (issue.code !== "invalid_union" || issue.errors.length === 0) return issue;
  const inside = issue.errors.flat().map((one) => deepest({ ...one, path: [...issue.path, ...one.path] }));
  return inside.reduce((best, one) => (one.path.length > best.path.length ? one : best));
}

function inWords(found: z.core.$ZodIssue, kind: RewardKind): string {
  const issue = deepest(found);
  const path = issue.path.map((key) => (typeof key === "number" ? `item ${key + 1}` : String(key))).join(": ");
  if (issue.code === "unrecognized_keys" && path === "") {
    const known = settingsOfKind(kind);
    const near = closest(issue.keys[0]!, known);
    return `there is no setting ${JSON.stringify(issue.keys[0])}${near ? `. Did you mean "${near}"?` : ""} Its settings: ${["name", "weight", ...known].join(", ")}`;
  }
  if (issue.code === "invalid_type" && issue.message.endsWith("received undefined")) return `${path} is missing`;
  return `${path ? `${path}: ` : ""}${issue.message}`;
}

/** The names of a kind's own settings. */
export function settingsOfKind(kind: RewardKind): string[] {
  const { properties = {} } = z.toJSONSchema(kind.config, { io: "input", unrepresentable: "any" }) as { properties?: object };
  return Object.keys(properties);
}

/** Who has no name is called by its type, numbered where several are. */
function withNames(items: readonly Unnamed[]): RewardItem[] {
  const taken = new Set(items.map(({ name }) => name));
  return items.map((item) => {
    if (item.name !== undefined) return item as RewardItem;
    let name = item.type;
    for (let i = 2; taken.has(name); i++) name = `${item.type}_${i}`;
    taken.add(name);
    return { ...item, name } as RewardItem;
  });
}

function twiceNamed(items: readonly RewardItem[]): string[] {
  const names = items.map(({ name }) => name);
  return [...new Set(names.filter((name, i) => names.indexOf(name) !== i))].map((name) => `two rewards are called ${name}`);
}

/** The rewards that a recipe asks for, in its order. They get ready when they are opened, or asked for the first time. */
export function rewardsOf(items: readonly RewardItem[], tools: Omit<RewardTools, "name">): Reward[] {
  return items.map(({ type, name, weight, ...config }) => {
    const kind = rewardKinds.find((candidate) => candidate.type === type)!;
    let opened: Promise<Reward["score"]> | undefined;
    const open = () => {
      opened ??= kind.open(config, { ...tools, name });
      return opened;
    };
    return {
      name,
      weight,
      columns: kind.columns?.(config) ?? [],
      open: async () => void (await open()),
      score: async (samples, at) => await (await open())(samples, at),
    };
  });
}

/**
 * Opens rewards before anything trains, and holds the columns that they read against the rows. Throws ConfigError for a reward that cannot be opened, and
 * where no row has a column; `warn` hears how many rows lack one.
 */
export async function checkRewards(
  rewards: readonly Reward[],
  rows: readonly { readonly columns: Readonly<Record<string, unknown>>; readonly where: string }[],
  warn: (message: string) => void,
): Promise<void> {
  for (const reward of rewards) {
    await reward.open?.();
    for (const column of new Set(reward.columns)) {
      const lacking = rows.filter(({ columns }) => (Object.hasOwn(columns, column) ? columns[column] : null) === null);
      if (lacking.length === 0) continue;
      if (lacking.length === rows.length) {
        const known = [...new Set(rows.slice(0, 1000).flatMap(({ columns }) => Object.keys(columns)))];
        const near = closest(column, known);
        throw new ConfigError(
          `rewards: ${reward.name} reads the column "${column}", which no row has${near ? `. Did you mean "${near}"?` : ""} ` +
            `(${known.length === 0 ? "the rows have nothing but prompts" : `there are ${known.slice(0, 20).join(", ")}`})`,
        );
      }
      warn(
        `${lacking.length} of ${rows.length} rows have no "${column}", the first ${lacking[0]!.where}: the reward ${reward.name} has nothing to say of their answers`,
      );
    }
  }
}
