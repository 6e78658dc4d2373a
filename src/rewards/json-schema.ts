import { createRequire } from "node:module";
import type { Options, ValidateFunction } from "ajv";

type Validator = (value: unknown) => boolean;

/**
 * A JSON Schema as a check of values: draft 2020-12, or draft-07 where `$schema` says so. `format` is read as an annotation, as 2020-12 has it, and
 * says nothing of a value. Nothing is fetched: `$ref` leads within the schema.
 * Throws Error for a schema that is none.
 */
export function compileSchema(schema: Readonly<Record<string, unknown>>): Validator {
  const isOlder = typeof schema.$schema === "string" && /draft-0[67]/.test(schema.$schema);
  if (schema.$async !== undefined) throw new Error("$async is not known");
  // Loaded where it is needed: it takes a while, and few recipes have a schema.
  const { default: Ajv } = createRequire(import.meta.url)(isOlder ? "ajv" : "ajv/dist/2020.js") as {
    default: new (options: Options) => { compile(schema: object): ValidateFunction };
  };
  const validate = new Ajv({
    strictSchema: true,
    strictTypes: false,
    strictRequired: false,
    validateFormats: false,
    logger: false,
  }).compile(schema);
  return (value) => validate(value);
}
