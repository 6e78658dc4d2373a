import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { type RegexDialect, translateRegex } from "./regex.js";
import { forEachMatch } from "./tokenizer/stage.js";

/** Made by test/fixtures/make_regex.py. A pattern that the other side refuses has null. */
interface Fixture {
  readonly texts: readonly string[];
  readonly oniguruma: readonly (readonly [pattern: string, splits: readonly (readonly string[])[] | null])[];
  readonly paths: readonly string[];
  readonly python: readonly (readonly [pattern: string, matches: readonly boolean[] | null])[];
}

const fixture = JSON.parse(
  readFileSync(fileURLToPath(new URL("../../../test/fixtures/regex.json", import.meta.url)), "utf8"),
) as Fixture;

function translated(pattern: string, dialect: RegexDialect, flags = ""): RegExp | undefined {
  try {
    return translateRegex(pattern, dialect, flags);
  } catch (error) {
    assert.ok(error instanceof SyntaxError, `${pattern}: ${String(error)}`);
    return undefined;
  }
}

test("Oniguruma's patterns split texts as the tokenizers library does, or are refused", () => {
  const refused: string[] = [];
  for (const [pattern, splits] of fixture.oniguruma) {
    const regex = translated(pattern, "oniguruma", "g");
    if (regex === undefined || splits === null) {
      assert.equal(regex, undefined, `${pattern} is refused there`);
      if (splits !== null) refused.push(pattern);
      continue;
    }
    for (const [index, text] of fixture.texts.entries()) {
      const parts: string[] = [];
      forEachMatch(text, regex, (start, end) => {
        if (end > start) parts.push(text.slice(start, end));
      });
      assert.deepEqual(parts, splits[index], `${pattern} on ${JSON.stringify(text)}`);
    }
  }
  assert.deepEqual(refused, []);
});

test("Python's patterns match whole paths as re.fullmatch does, or are refused", () => {
  const refused: string[] = [];
  for (const [pattern, matches] of fixture.python) {
    const regex = translated(pattern, "python") === undefined ? undefined : wholePattern(pattern);
    if (regex === undefined || matches === null) {
      assert.equal(regex, undefined, `${pattern} is refused there`);
      if (matches !== null) refused.push(pattern);
      continue;
    }
    assert.deepEqual(
      fixture.paths.map((path) => regex.test(path)),
      matches,
      pattern,
    );
  }
  assert.deepEqual(refused, ["(?x) a b", "(a)\\1", "(?a)a"]);
});

function wholePattern(pattern: string): RegExp {
  return new RegExp(`^(?:${translateRegex(pattern, "python").source})$`, "v");
}

test("what has no equal is refused by name, with its place", () => {
  const faults: [string, RegexDialect, RegExp][] = [
    ["(a)\\1", "oniguruma", /at character 4, "\\1", which has no equal/],
    ["\\Gab", "oniguruma", /"\\G"/],
    ["\\p{Nonsense}", "oniguruma", /the property "Nonsense"/],
    ["(?i:straSSe)", "oniguruma", /under \(\?i\)/],
    ["(?<=a++)b", "oniguruma", /inside a lookbehind/],
    ["(?P<a>b)", "oniguruma", /Python's/],
    ["(?x)a b", "python", /the flag "x"/],
    ["a(?i)b", "python", /flags that do not stand at the beginning/],
    ["(?(1)a|b)", "python", /no equal/],
    ["[z-a]", "python", /runs backwards/],
    ["(".repeat(1000), "python", /deep/],
  ];
  for (const [pattern, dialect, message] of faults)
    assert.throws(() => translateRegex(pattern, dialect), { name: "SyntaxError", message }, pattern);
});
