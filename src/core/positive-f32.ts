import { z } from "zod";

/** A setting, such as a rate or a factor, that is still above 0 and finite after rounding to f32, the engine's numbers. */
export const positiveF32 = z.number().min(1e-37).max(1e38);
