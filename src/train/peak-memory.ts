import { readFileSync } from "node:fs";

/**
 * Peak resident set of this process so far. On Linux the kernel's VmHWM: what getrusage tells survives exec there, so that a small process
 * under a large parent would tell the parent's. Elsewhere getrusage, which tells macOS' and Windows' own peak of a process.
 */
export function peakMemoryBytes(): number {
  const told = process.platform === "linux" ? /^VmHWM:\s*(\d+) kB$/m.exec(statusOfProcess())?.[1] : undefined;
  highest = Math.max(highest, 1024 * (told === undefined ? process.resourceUsage().maxRSS : Number(told)));
  return highest;
}

/**
 * The highest value so far: Linux counts pages on each CPU and sums them only roughly, so that its own peak can fall a little.
 */
let highest = 0;

/** Empty where /proc is not mounted. */
function statusOfProcess(): string {
  try {
    return readFileSync("/proc/self/status", "utf8");
  } catch {
    return "";
  }
}
