import type { z } from "zod";
import type { Task } from "../objective.js";
import { referenceKeys, referenceOf } from "../preference/reference-keys.js";

/** The reference of answers that do not exist before training: it can be another model, and cannot be asked beforehand. */
const { precompute_ref_log_probs: _, ...keys } = referenceKeys;
export const policyReferenceKeys = keys;

type Settings = z.output<z.ZodObject<typeof policyReferenceKeys>>;

export interface ReferenceUse {
  /** Whether the KL divergence from it costs anything. */
  readonly hasReference: boolean;
  /** Whether a reward sits on the base as it was. */
  readonly usesBase: boolean;
  warn(message: string): void;
}

/** What a task with these settings needs of the base. Throws ConfigError as `referenceOf`. */
export function policyReference(
  settings: Settings,
  { hasReference, usesBase, warn }: ReferenceUse,
): Pick<Task, "usesBase" | "reference"> {
  const of = referenceOf({ ...settings, precompute_ref_log_probs: false });
  if (!hasReference && settings.ref_model !== null) warn("ref_model is not used: the KL divergence from it costs nothing");
  return { ...(hasReference && of), ...((usesBase || (hasReference && of.usesBase)) && { usesBase: true }) };
}
