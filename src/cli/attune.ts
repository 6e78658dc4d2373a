import { main } from "./main.js";
import type { Parts } from "./parts.js";

const parts: Parts = {
  async *runRecipe() {
    yield* [];
    throw new Error("not wired");
  },
  async openChat() {
    throw new Error("not wired");
  },
  async *previewData() {
    yield* [];
    throw new Error("not wired");
  },
};

// A reader that has seen enough, such as `head`, is no error.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(0);
});

process.exitCode = await main(process.argv.slice(2), parts, process);
