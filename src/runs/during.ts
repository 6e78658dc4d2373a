/**
 * Runs `work` and yields what it emits meanwhile; returns its result. Lets a generator pass on the callbacks of a promise.
 */
export async function* during<E, T>(work: (emit: (event: E) => void) => Promise<T>): AsyncGenerator<E, T> {
  const queue: E[] = [];
  let wake = () => {};
  const result = work((event) => {
    queue.push(event);
    wake();
  });
  let isDone = false;
  const finished = result
    .catch(() => {}) // thrown below, where the caller sees it
    .then(() => {
      isDone = true;
      wake();
    });
  while (!isDone || queue.length > 0) {
    const event = queue.shift();
    if (event !== undefined) {
      yield event;
      continue;
    }
    await new Promise<void>((resolve) => {
      wake = resolve;
      if (isDone || queue.length > 0) resolve();
    });
  }
  await finished;
  return await result;
}
