/**
 * The errors that attune throws on purpose. Each message says where, what was expected, what came, and what to do.
 * `code` is stable: callers and tests match on it, never on the message.
 */
export class AttuneError extends Error {
  readonly code: string;
  /** Exit code of the CLI when this error ends the process. */
  readonly exitCode: number;

  constructor(code: string, exitCode: number, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
    this.exitCode = exitCode;
  }
}

/** A tensor has another shape or type than the operation needs: a bug in calling code. */
export class ShapeError extends AttuneError {
  constructor(message: string) {
    super("SHAPE", 1, message);
  }
}

/** A recipe, an entry of dataset_info.json, a flag or an argument is wrong, or a recipe is not there: what somebody asks for. */
export class ConfigError extends AttuneError {
  constructor(message: string, options?: ErrorOptions) {
    super("CONFIG", 2, message, options);
  }
}

/** A data file is not there, or its rows cannot be used. */
export class DataError extends AttuneError {
  constructor(message: string, options?: ErrorOptions) {
    super("DATA", 2, message, options);
  }
}

/** A model, tokenizer or adapter is not there, damaged, hostile, of another shape than promised, or of another kind than is asked for. */
export class ModelError extends AttuneError {
  constructor(message: string, options?: ErrorOptions) {
    super("MODEL", 2, message, options);
  }
}

/** A checkpoint or a folder to write into cannot be used: not there, incomplete, changed, locked by another run, not to be written to. */
export class CheckpointError extends AttuneError {
  constructor(message: string, options?: ErrorOptions) {
    super("CHECKPOINT", 2, message, options);
  }
}

/** A reward could not be had: a function threw, an endpoint did not answer, a number is none. */
export class RewardError extends AttuneError {
  constructor(message: string, options?: ErrorOptions) {
    super("REWARD", 2, message, options);
  }
}

/** The native engine cannot be loaded, or refused a call. */
export class EngineError extends AttuneError {
  constructor(message: string, options?: ErrorOptions) {
    super("ENGINE", 1, message, options);
  }
}

/** A loss, a gradient, a weight or what is made of weights is no finite number. */
export class DivergedError extends AttuneError {
  constructor(message: string) {
    super("DIVERGED", 3, message);
  }
}

/** The disk is full. */
export class NoSpaceError extends AttuneError {
  constructor(message: string, options?: ErrorOptions) {
    super("NO_SPACE", 4, message, options);
  }
}

/** The work needs more memory than the machine has. */
export class DoesNotFitError extends AttuneError {
  constructor(message: string) {
    super("DOES_NOT_FIT", 5, message);
  }
}

/** The user stopped the run; what was finished is saved, and `resume_from_checkpoint: true` goes on with it. */
export class InterruptedError extends AttuneError {
  constructor(message: string) {
    super("INTERRUPTED", 130, message);
  }
}

/** What is asked for something was closed before: a chat, a classifier, a model. */
export class ClosedError extends AttuneError {
  constructor(message: string) {
    super("CLOSED", 1, message);
  }
}
