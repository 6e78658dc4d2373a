/**
 * The first SIGINT or SIGTERM aborts `signal` and calls `onFirst`; the second ends the process at once with code 130. Files are only
 * ever replaced whole, so that loses the work since the last checkpoint and nothing else.
 */
export function watchInterrupts(onFirst: () => void): { readonly signal: AbortSignal; stop(): void } {
  const controller = new AbortController();
  const onSignal = () => {
    if (controller.signal.aborted) process.exit(130);
    controller.abort();
    onFirst();
  };
  const signals = ["SIGINT", "SIGTERM"] as const;
  for (const name of signals) process.on(name, onSignal);
  return {
    signal: controller.signal,
    stop() {
      for (const name of signals) process.off(name, onSignal);
    },
  };
}
