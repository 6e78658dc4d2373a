import { z } from "zod";

/** What a schedule is laid over. */
export interface Horizon {
  readonly warmupSteps: number;
  readonly totalSteps: number;
  /** The peak: some settings of schedules are rates themselves. */
  readonly learningRate: number;
}

/** The factor on the learning rate at an optimizer step, counted from 0. */
export type Factor = (step: number) => number;

export interface Schedule<Settings = unknown> {
  /** What `lr_scheduler_kwargs` may say. */
  readonly settings: z.ZodType<Settings>;
  /** False where the learning rate is at its peak from the first step on, whatever warm-up is asked for. */
  readonly hasWarmup: boolean;
  /** What is wrong with settings beside this learning rate. */
  check?(settings: Settings, learningRate: number): string | undefined;
  /** What the user should know of settings beside this horizon. */
  warning?(settings: Settings, horizon: Horizon): string | undefined;
  factor(settings: Settings, horizon: Horizon): Factor;
}

const define = <Settings>(schedule: Schedule<Settings>): Schedule => schedule as Schedule;

const none = z.strictObject({});
const ratio = z.number().min(0).max(1);
const steps = z.int().min(0);
const cycles = (waves: number) => z.number().positive().max(1e6).default(waves).describe("waves of the cosine");
const shape = z.enum(["linear", "cosine", "1-sqrt"]);
const floorSettings = z.strictObject({
  num_cycles: cycles(0.5),
  min_lr: z.number().min(0).optional().describe("the rate that it ends with"),
  min_lr_rate: ratio.optional().describe("the same as a share of `learning_rate`"),
});
const warmupFloorSettings = floorSettings.extend({
  warmup_lr_rate: ratio.optional().describe("share of `learning_rate` where the warm-up begins; not set: one step's"),
});
const stableDecaySettings = z.strictObject({
  num_stable_steps: steps
    .optional()
    .describe("steps at the peak; not set: what the decay leaves, or a third of the steps after the warm-up"),
  num_decay_steps: steps.optional().describe("steps that go down; not set: the rest"),
  warmup_type: shape.default("linear"),
  decay_type: shape.default("cosine"),
  min_lr_ratio: ratio.default(0).describe("share of `learning_rate` where it begins and ends"),
  num_cycles: cycles(0.5),
});

/**
 * How the learning rate changes over the steps, by the names of transformers, with the settings of its functions and their defaults.
 * Source: transformers 5.24 `optimization.py`. Like there, step 0 of a warm-up has rate 0, and the warm-up is a straight line but where another is said.
 */
export const schedules = {
  linear: define({
    ...{ settings: none, hasWarmup: true },
    factor: (_, horizon) => warmedUp(horizon, (progress) => Math.max(0, 1 - progress)),
  }),
  cosine: define({
    ...{ settings: z.strictObject({ num_cycles: cycles(0.5) }), hasWarmup: true },
    factor: ({ num_cycles }, horizon) => warmedUp(horizon, (progress) => Math.max(0, wave(num_cycles, progress))),
  }),
  cosine_with_restarts: define({
    ...{ settings: z.strictObject({ num_cycles: cycles(1) }), hasWarmup: true },
    factor: ({ num_cycles }, horizon) =>
      warmedUp(horizon, (progress) => (progress >= 1 ? 0 : Math.max(0, wave(0.5, (num_cycles * progress) % 1)))),
  }),
  cosine_with_min_lr: define({
    ...{ settings: floorSettings, hasWarmup: true, check: checkFloor },
    factor(settings, horizon) {
      const floor = floorOf(settings, horizon);
      return warmedUp(horizon, (progress) => Math.max(0, above(floor, wave(settings.num_cycles, progress))));
    },
  }),
  cosine_warmup_with_min_lr: define<z.output<typeof warmupFloorSettings>>({
    ...{ settings: warmupFloorSettings, hasWarmup: true, check: checkFloor },
    factor(settings, horizon) {
      const { warmupSteps, totalSteps } = horizon;
      const { num_cycles, warmup_lr_rate: start } = settings;
      const floor = floorOf(settings, horizon);
      return (step) => {
        if (step < warmupSteps)
          return start === undefined
            ? (step + 1) / Math.max(1, warmupSteps)
            : start + ((1 - start) * step) / Math.max(1, warmupSteps - 1);
        const progress = (step - warmupSteps + 1) / Math.max(1, totalSteps - warmupSteps);
        return Math.max(0, above(floor, wave(num_cycles, progress)));
      };
    },
  }),
  polynomial: define({
    settings: z.strictObject({
      lr_end: z.number().min(0).default(1e-7).describe("the rate that it ends with"),
      power: z.number().positive().max(1e3).default(1),
    }),
    hasWarmup: true,
    check: ({ lr_end }, learningRate) =>
      lr_end < learningRate ? undefined : `lr_end is ${lr_end}, and must be below learning_rate, ${learningRate}`,
    factor: ({ lr_end, power }, horizon) =>
      warmedUp(horizon, (progress) => {
        const { learningRate } = horizon;
        return ((learningRate - lr_end) * (1 - progress) ** power + lr_end) / learningRate;
      }),
  }),
  inverse_sqrt: define({
    settings: z.strictObject({
      timescale: z.int().min(1).optional().describe("steps after which the rate falls as 1/√; not set: the warm-up's, or 10000"),
    }),
    hasWarmup: true,
    factor({ timescale }, { warmupSteps }) {
      const scale = timescale ?? (warmupSteps || 10_000);
      return (step) => (step < warmupSteps ? step / warmupSteps : 1 / Math.sqrt((step + (scale - warmupSteps)) / scale));
    },
  }),
  /** Where settings leave steps open, they are LLaMA-Factory's: a third at the peak. transformers asks for `num_decay_steps`. */
  warmup_stable_decay: define({
    ...{ settings: stableDecaySettings, hasWarmup: true },
    warning(settings, horizon) {
      const { warmupSteps, totalSteps } = horizon;
      const { stable, decay } = stagesOf(settings, horizon);
      if (warmupSteps + stable + decay === totalSteps) return undefined;
      return (
        `lr_scheduler_kwargs: ${warmupSteps} steps of warm-up, ${stable} at the peak and ${decay} of decay are not the ${totalSteps} steps of the ` +
        `run: what is over has the learning rate times ${settings.min_lr_ratio}, what is too much is left out`
      );
    },
    factor(settings, horizon) {
      const { warmupSteps } = horizon;
      const { min_lr_ratio: floor, num_cycles } = settings;
      const { stable, decay } = stagesOf(settings, horizon);
      const rise = {
        linear: (x: number) => x,
        cosine: (x: number) => 0.5 * (1 - Math.cos(Math.PI * x)),
        "1-sqrt": oneMinusSqrtOfRest,
      };
      const fall = {
        linear: (x: number) => 1 - x,
        cosine: (x: number) => wave(num_cycles, x),
        "1-sqrt": (x: number) => 1 - Math.sqrt(x),
      };
      return (step) => {
        if (step < warmupSteps) return above(floor, rise[settings.warmup_type](step / warmupSteps));
        const after = step - warmupSteps - stable;
        if (after < 0) return 1;
        return after < decay ? Math.max(0, above(floor, fall[settings.decay_type](after / decay))) : floor;
      };
    },
  }),
  constant: define({ settings: none, hasWarmup: false, factor: () => () => 1 }),
  constant_with_warmup: define({
    ...{ settings: none, hasWarmup: true },
    factor: (_, horizon) => warmedUp(horizon, () => 1),
  }),
} as const satisfies Record<string, Schedule>;

export type ScheduleName = keyof typeof schedules;
export const scheduleNames = Object.keys(schedules) as ScheduleName[];

/** A schedule with its settings, `lr_scheduler_kwargs`, over the steps of a run. Throws ZodError for settings that it has not. */
export function scheduleOf(name: ScheduleName, settings: Readonly<Record<string, unknown>> | null, horizon: Horizon): Factor {
  const schedule: Schedule = schedules[name];
  return schedule.factor(schedule.settings.parse(settings ?? {}), horizon);
}

/** A straight line from 0 over the steps of the warm-up, then `curve` from progress 0 to 1. */
function warmedUp({ warmupSteps, totalSteps }: Horizon, curve: (progress: number) => number): Factor {
  return (step) =>
    step < warmupSteps ? step / Math.max(1, warmupSteps) : curve((step - warmupSteps) / Math.max(1, totalSteps - warmupSteps));
}

/** From 1 at progress 0; half a wave ends at 0. */
function wave(cycles: number, progress: number): number {
  return 0.5 * (1 + Math.cos(Math.PI * cycles * 2 * progress));
}

const above = (floor: number, factor: number) => factor * (1 - floor) + floor;
const oneMinusSqrtOfRest = (x: number) => 1 - Math.sqrt(1 - x);

type Floor = z.output<typeof floorSettings>;

function checkFloor({ min_lr, min_lr_rate }: Floor): string | undefined {
  return (min_lr === undefined) === (min_lr_rate === undefined) ? "set min_lr or min_lr_rate, one of them" : undefined;
}

function floorOf({ min_lr, min_lr_rate }: Floor, { learningRate }: Horizon): number {
  return min_lr === undefined ? (min_lr_rate ?? 0) : min_lr / learningRate;
}

function stagesOf(
  { num_stable_steps, num_decay_steps }: z.output<typeof stableDecaySettings>,
  { warmupSteps, totalSteps }: Horizon,
): { stable: number; decay: number } {
  const remaining = Math.max(0, totalSteps - warmupSteps);
  const left = (taken: number) => Math.max(0, remaining - taken);
  const stable = num_stable_steps ?? (num_decay_steps === undefined ? Math.floor(remaining / 3) : left(num_decay_steps));
  return { stable, decay: num_decay_steps ?? left(stable) };
}
