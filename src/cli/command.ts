import type { Command as TypedCommand } from "@commander-js/extra-typings";
import { Command } from "commander";
import type { Parts } from "./parts.js";
import type { Io } from "./terminal.js";
import type { Words } from "./words/index.js";

/** What a command works with while it runs. */
export interface Context {
  readonly io: Io;
  readonly words: Words;
  readonly parts: Parts;
  /** attune's own. */
  readonly version: string;
  /** Sets what the process returns when the command has run; without a call it is 0. */
  setExitCode(code: number): void;
}

/**
 * Declares a command below `program`: its flags, its help, and what it does. Every command is declared each time that attune starts, so a file with
 * one loads what takes time (the engine, the schema of recipes) only in its action.
 */
export type AddCommand = (program: TypedCommand, context: Context) => void;

/** A command that hands its action the options with the types that their flags declare: commander's own, seen through its stricter types. */
export function newProgram(name: string): TypedCommand {
  return new Command(name) as unknown as TypedCommand;
}
