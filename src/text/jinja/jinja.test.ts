import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { readFixture } from "../testing/byte-level.js";
import { OverBudget, TemplateError, Unsupported, Work } from "./errors.js";
import { Refusal, raiseException, strftime } from "./globals.js";
import { renderTemplate } from "./interpreter.js";
import { parseTemplate } from "./parser.js";
import { Callable, fromJson, type Value } from "./values.js";

/** Made by test/fixtures/make_jinja.py. */
const { variables, features } = readFixture<{
  variables: Record<string, unknown>;
  features: Record<string, { source: string; text?: string; error?: string }[]>;
}>("jinja.json");

function render(source: string, budget = { steps: 1_000_000, chars: 1_000_000 }): string {
  const work = new Work(budget);
  const now = new Date(2026, 2, 5, 7, 8, 9);
  const given: [string, Value][] = [
    ...Object.entries(variables).map(([name, value]): [string, Value] => [name, fromJson(value)]),
    ["big", 12345678901234567890n],
    ["raise_exception", new Callable("raise_exception", ([message = null]) => raiseException(message, work))],
    ["strftime_now", new Callable("strftime_now", ([pattern = null]) => strftime(now, pattern, work))],
  ];
  return renderTemplate(parseTemplate(source), given, work);
}

/** What a template comes to: its text, that it fails as in Python, or the use that is not known here. */
function outcome(source: string): { text?: string; refused?: string; failed?: true } {
  try {
    return { text: render(source) };
  } catch (error) {
    if (error instanceof Unsupported) return { refused: /^it uses (.*), which attune does not know$/s.exec(error.message)![1]! };
    assert.ok(error instanceof TemplateError || error instanceof Refusal, `${source}: ${error}`);
    return { failed: true };
  }
}

test("every feature is rendered as in Python, fails as there, or is refused", () => {
  const table: string[] = ["| feature | examples | of them refused |", "|---|---|---|"];
  for (const [feature, cases] of Object.entries(features)) {
    const refused = new Set<string>();
    for (const { source, text } of cases) {
      const result = outcome(source);
      if (result.refused !== undefined) refused.add(result.refused);
      else if (text === undefined) assert.ok(result.failed, `${source} gave ${JSON.stringify(result.text)}`);
      else assert.equal(result.text, text, source);
    }
    table.push(`| ${feature} | ${cases.length} | ${[...refused].join("; ")} |`);
  }
  const documented = readFileSync(fileURLToPath(new URL("../../../../docs/templates.md", import.meta.url)), "utf8");
  assert.ok(documented.includes(table.join("\n")), `docs/templates.md should hold this table:\n${table.join("\n")}`);
});

test("work ends at its budget", () => {
  const hostile = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "{% set ns = namespace(a=[]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=[]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a == ns.a | list }}",
    "{% set ns = namespace(a=[]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a | tojson }}",
    "{{ 'x' * 10 ** 12 }}",
    "{{ [0] * 10 ** 12 }}",
    "{{ 10 ** 10000000 }}",
    "{{ ('a' * 900000).replace('', 'b' * 900000) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ 'a'.center(10 ** 15) }}",
    "{{ 'a'.ljust(10 ** 15) }}",
    "{{ 'a' | indent(10 ** 15) | length }}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "{{ range(99999) | map('string') | join('x' * 9999) }}",
    "{% set ns = namespace(n=2) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% set a = range(99999) | list %}{% for i in range(99999) %}{% set b = a | sort %}{% endfor %}",
    "{% set a = ('x' * 900000) %}{% for i in range(99999) %}{% if 'y' in a %}{% endif %}{% endfor %}",
    "{% for i in range(3) | batch(10 ** 15, 1) %}{% endfor %}",
    "{{ range(3) | slice(10 ** 15) | list }}",
    "{% macro m(n) %}{{ m(n + 1) ~ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    `{{ ${"(".repeat(100_000)}1${")".repeat(100_000)} }}`,
    `{{ ${"not ".repeat(100_000)}1 }}`,
    `{{ ${"-".repeat(100_000)}1 }}`,
  ];
  for (const source of hostile) {
    const label = source.slice(0, 80);
    const start = process.cpuUsage();
    assert.throws(
      () => render(source),
      (error) => error instanceof OverBudget || error instanceof Unsupported || error instanceof RangeError,
      label,
    );
    const { user, system } = process.cpuUsage(start);
    assert.ok(user + system < 2e6, `${label} took ${(user + system) / 1e6} s`);
  }
});
