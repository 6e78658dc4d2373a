import { readFileSync } from "node:fs";

/**
 * Peak resident set of this process so far. On Linux the kernel's VmHWM: what getrusage tells survives exec there, so that a small process
 * under a large parent would tell the parent's. Elsewhere getrusage, which tells macOS' and Windows' own peak of a process.
 */
export function peakMemoryBytes(): number {
  if (process.platform === "linux") {
    const peakKiB = /^VmHWM:\s*(\d+) kB$/m.exec(statusOfProcess())?.[1];
    if (peakKiB !== undefined) return Number(peakKiB) * 1024;
  }
  return process.resourceUsage().maxRSS * 1024;
}

/** Empty where /proc is not mounted. */
function statusOfProcess(): string {
  try {
    return readFileSync("/proc/self/status", "utf8");
  } catch {
    return "";
  }
}
