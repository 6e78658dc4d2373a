import { axesOf, expectation, type KeySchema, keySchemas, type Methods, RecipeKeys } from "./schema.js";

/**
 * src/recipe/recipe-settings.ts: recipes as TypeScript sees them, made from the schemas, so that an editor completes every setting with its meaning
 * and a name that does not exist does not compile. Inferred types would say no meanings, and only of settings known where they are written.
 */
export function recipeTypeSource(methods: Methods): string {
  const axes = axesOf(methods);
  const variants = new Map<string, KeySchema[]>();
  for (const schema of [RecipeKeys, ...Object.values(axes).flatMap((all) => all.flatMap(({ config }) => config ?? []))])
    for (const [key, of] of Object.entries(keySchemas(schema))) variants.set(key, [...(variants.get(key) ?? []), of]);
  const needed = new Set(Object.entries(keySchemas(RecipeKeys)).flatMap(([key, schema]) => ("default" in schema ? [] : [key])));

  const settings = [...variants].map(([key, schemas]) => {
    const choices = axes[key as keyof typeof axes]?.map(({ name }) => JSON.stringify(name));
    const types = key === "stages" ? stagesType : (choices ?? unionOf(schemas.flatMap(typesOf)));
    const [mark, more] = needed.has(key) ? ["", ""] : ["?", " | undefined"];
    return `  /** ${docOf(schemas[0]!)} */\n  readonly ${key}${mark}: ${types.join(" | ")}${more};`;
  });
  return `${intro}\nexport interface RecipeSettings {\n${settings.join("\n")}\n}\n\n${stageSettings}`;
}

const stagesType = ['readonly (NonNullable<RecipeSettings["stage"]> | StageSettings)[]', "null"];

const stageSettings = `/** A stage of \`stages\` with settings of its own; the rest are the recipe's. */
export interface StageSettings
  extends Partial<Omit<RecipeSettings, "stage" | "stages" | "output_dir" | "overwrite_output_dir" | "resume_from_checkpoint">> {
  readonly stage: NonNullable<RecipeSettings["stage"]>;
}
`;

const intro = `// Made by scripts/make-recipe-docs.mjs from the schemas of src/recipe/, src/tuners/, src/objectives/ and src/backends/. Change it there.

/** The settings of a run, under LLaMA-Factory's names: docs/recipe.md. What one method alone reads is refused, or named, under another. */`;

function docOf(schema: KeySchema): string {
  const value = schema.default;
  const shown = value === null || value === undefined || typeof value === "object" ? "" : ` Default: \`${String(value)}\`.`;
  const isNumber = typesOf(schema).some((type) => type === "number");
  const takes = isNumber ? ` Takes ${expectation(schema)}.` : "";
  const meaning = schema.description ?? "";
  return `${meaning.charAt(0).toUpperCase()}${meaning.slice(1)}.${takes}${shown}`.replaceAll("*/", "*\\/");
}

/** Each member once, and no single numbers beside all numbers. */
function unionOf(types: readonly string[]): string[] {
  const members = [...new Set(types)];
  return members.includes("number") ? members.filter((type) => type === "number" || Number.isNaN(Number(type))) : members;
}

/** The members of the union that a schema is. */
function typesOf(schema: KeySchema): string[] {
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value));
  if (schema.anyOf) return schema.anyOf.flatMap(typesOf);
  const types = schema.type === undefined ? [] : [schema.type].flat();
  return types.map((type) => {
    switch (type) {
      case "integer":
        return "number";
      case "array": {
        const items = schema.items ? typesOf(schema.items) : ["unknown"];
        return items.length === 1 ? `readonly ${items[0]}[]` : `readonly (${items.join(" | ")})[]`;
      }
      case "object": {
        const values = schema.additionalProperties ? typesOf(schema.additionalProperties) : [];
        return `Readonly<Record<string, ${values.length === 0 ? "unknown" : values.join(" | ")}>>`;
      }
      default:
        return type;
    }
  });
}
