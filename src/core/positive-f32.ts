import { z } from "zod";

/** A setting that is neither 0 nor infinite once it is a number of the engine, f32: a rate, a factor. */
export const positiveF32 = z.number().min(1e-37).max(1e38);
