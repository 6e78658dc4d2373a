import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { ConfigError } from "../errors.js";
import { parseFormula } from "./formula.js";
import { rewardKeys } from "./rewards.js";
import { numberIn } from "./rules.js";
import { parseTemplate } from "./template.js";
import { contextOf, rewardFrom, sampleOf } from "./testing/samples.js";

type Case = readonly [answer: string, score: number | null, columns?: Readonly<Record<string, unknown>>];

/** Scores as a hand works them out. */
const tables: readonly (readonly [item: object, cases: readonly Case[]])[] = [
  [
    { type: "regex", pattern: "^\\d+$" },
    [
      ["42", 1],
      ["a42", 0],
      ["42\n", 0],
      ["", 0],
    ],
  ],
  [
    { type: "regex", pattern: "^b$", flags: "im" },
    [
      ["a\nB\nc", 1],
      ["ab", 0],
    ],
  ],
  [
    { type: "regex", pattern: "^.$" },
    [
      ["😀", 1],
      ["ab", 0],
    ],
  ],
  [
    { type: "exact_match" },
    [
      [" Paris\n", 1, { answer: "Paris" }],
      ["paris", 0, { answer: "Paris" }],
      ["Paris.", 0, { answer: "Paris" }],
      ["x", null],
      ["x", null, { answer: null }],
      ["42", 1, { answer: 42 }],
    ],
  ],
  [
    { type: "exact_match", reference: "{{ item.gold.city }}!", ignore_case: true },
    [
      ["PARIS!", 1, { gold: { city: "Paris" } }],
      ["Paris", 0, { gold: { city: "Paris" } }],
      ["x", null, { gold: {} }],
    ],
  ],
  [
    { type: "contains", texts: ["yes", "{{ item.word }}"] },
    [
      ["yes, a cat", 1, { word: "cat" }],
      ["no cat", 0.5, { word: "cat" }],
      ["Yes", 0, { word: "cat" }],
      ["yes", null],
    ],
  ],
  [
    { type: "contains", texts: ["YES"], ignore_case: true },
    [
      ["oh yes", 1],
      ["no", 0],
    ],
  ],
  [
    { type: "json" },
    [
      ['{"a": 1}', 1],
      [" [1, 2]\n", 1],
      ["42", 1],
      ["{'a': 1}", 0],
      ['{"a": 1,}', 0],
      ['{"a": 1, "a": 2}', 0],
      ["", 0],
      ["NaN", 0],
      ['```json\n{"a": 1}\n```', 0],
    ],
  ],
  [
    {
      type: "json",
      schema: { type: "object", required: ["a"], properties: { a: { type: "integer" } }, additionalProperties: false },
    },
    [
      ['{"a": 1}', 1],
      ['{"a": 1.5}', 0],
      ['{"a": "1"}', 0],
      ["{}", 0],
      ['{"a": 1, "b": 2}', 0],
      ["[1]", 0],
      ["a", 0],
    ],
  ],
  [
    {
      type: "json",
      schema: { $schema: "http://json-schema.org/draft-07/schema#", items: [{ type: "string" }], additionalItems: false },
    },
    [
      ['["a"]', 1],
      ['["a", 1]', 0],
      ["[1]", 0],
    ],
  ],
  [
    { type: "json", schema: { prefixItems: [{ $ref: "#/$defs/name" }], $defs: { name: { type: "string", format: "email" } } } },
    [
      ['["no email"]', 1],
      ["[1]", 0],
    ],
  ],
  [
    { type: "length", unit: "characters", min: 2, max: 4 },
    [
      ["a", 0],
      ["ab", 1],
      ["abcd", 1],
      ["😀😀", 1],
      ["abcde", 0],
    ],
  ],
  [
    { type: "length", unit: "words", max: 2 },
    [
      ["", 1],
      [" one  two\n", 1],
      ["one two three", 0],
    ],
  ],
  [
    { type: "length", target: 4 },
    [
      ["abcd", 1],
      ["ab", 0.5],
      ["", 0],
      ["abcdef", 0.5],
      ["abcdefgh", 0],
      ["abcdefghijkl", 0],
    ],
  ],
  [
    { type: "format" },
    [
      ["<think>a</think><answer>b</answer>", 1],
      ["\n<think>\na\n</think>\n<answer>b</answer>\n", 1],
      ["<think>a</think>b", 0],
      ["<answer>b</answer><think>a</think>", 0],
      ["<think>a<think></think><answer>b</answer>", 0],
      ["<think>a</think><answer>b</answer>c", 0],
      ["<think>a</think><answer>b", 0],
      ["x<think>a</think><answer>b</answer>", 0],
      ["", 0],
    ],
  ],
  [
    { type: "format", tags: ["think"], rest: true },
    [
      ["<think>a</think> so: b", 1],
      ["<think></think>", 1],
      ["<think>a", 0],
      ["<think>a</think><think>b</think>", 0],
    ],
  ],
  [
    { type: "similarity", metric: "edit" },
    [
      ["kitten", 1 - 3 / 7, { answer: "sitting" }],
      ["", 0, { answer: "abc" }],
      ["", 1, { answer: "" }],
      ["日本", 0.5, { answer: "日本人々" }],
      ["x", null],
    ],
  ],
  [
    { type: "similarity", metric: "rouge-1", reference: "the cat sat" },
    [
      ["the cat sat", 1],
      ["a dog", 0],
      ["", 0],
      ["the cat", 0.8],
    ],
  ],
  [
    { type: "similarity", metric: "rouge-l", reference: "a b c d" },
    [
      ["a c b d", 0.75],
      ["d c b a", 0.25],
    ],
  ],
  [
    { type: "similarity", metric: "bleu-4", reference: "abcd" },
    [
      ["abcd", 1],
      ["xyz", 0],
    ],
  ],
  [
    { type: "numeric" },
    [
      ["It is 72.", 1, { answer: "12 + 60 = 72\n#### 72" }],
      ["72 or 73", 0, { answer: "72" }],
      ["\\boxed{1,234.50} of 2", 1, { answer: 1234.5 }],
      ["none", 0, { answer: "5" }],
      ["5", null, { answer: "five" }],
      ["5", null],
      ["-3/4", 1, { answer: "-0.75" }],
      ["\\boxed{\\frac{3}{4}}", 1, { answer: "0.75" }],
      ["$1,000", 1, { answer: "1000" }],
      ["−2", 1, { answer: "-2" }],
    ],
  ],
  [
    { type: "numeric", tolerance: 0.01 },
    [
      ["100.9", 1, { answer: "100" }],
      ["101.1", 0, { answer: "100" }],
      ["0.009", 1, { answer: "0" }],
    ],
  ],
  [
    { type: "string_check", input: "{{ sample.output_text }}", reference: "{{ item.ref }}", operation: "eq" },
    [
      ["a", 1, { ref: "a" }],
      ["A", 0, { ref: "a" }],
      ["a", null],
    ],
  ],
  [
    { type: "string_check", input: "{{sample.output_text}}", reference: "a", operation: "ne" },
    [
      ["a", 0],
      ["b", 1],
    ],
  ],
  [
    { type: "string_check", input: "{{sample.output_text}}", reference: "ab", operation: "like" },
    [
      ["cab", 1],
      ["CAB", 0],
    ],
  ],
  [
    { type: "string_check", input: "{{sample.output_text}}", reference: "aB", operation: "ilike" },
    [
      ["CAB", 1],
      ["ba", 0],
    ],
  ],
  [
    { type: "string_check", input: "{{ sample.output_json.name }}", reference: "Ann", operation: "eq" },
    [
      ['{"name": "Ann"}', 1],
      ['{"name": 1}', 0],
      ["no JSON", 0],
    ],
  ],
  [
    { type: "text_similarity", input: "{{sample.output_text}}", reference: "{{item.a}}", evaluation_metric: "fuzzy_match" },
    [
      ["abcd", 1, { a: "abcd" }],
      ["abcd", 0.75, { a: "abxd" }],
      ["", 0, { a: "b" }],
      ["this is a test", 28 / 29, { a: "this is a test!" }],
    ],
  ],
  [
    { type: "text_similarity", input: "{{sample.output_text}}", reference: "a b c", evaluation_metric: "rouge_2" },
    [
      ["a b c", 1],
      ["a b", 2 / 3],
    ],
  ],
  [
    { type: "text_similarity", input: "{{sample.output_text}}", reference: "a b c", evaluation_metric: "rouge_3" },
    [
      ["a b c", 1],
      ["a b", 0],
    ],
  ],
  [
    {
      type: "multi",
      graders: {
        same: { type: "string_check", input: "{{sample.output_text}}", reference: "abcd", operation: "eq" },
        near: {
          type: "text_similarity",
          input: "{{sample.output_text}}",
          reference: "{{item.a}}",
          evaluation_metric: "fuzzy_match",
        },
      },
      calculate_output: "0.25 * same + 0.75 * max(near, 0.5) ^ 2",
    },
    [
      ["abcd", 1, { a: "abcd" }],
      ["abxd", 0.75 * 0.5625, { a: "abcd" }],
      ["zzzz", 0.75 * 0.25, { a: "abcd" }],
      ["abcd", null],
    ],
  ],
  [
    {
      type: "multi",
      graders: [
        {
          name: "one",
          type: "string_check",
          input: "{{sample.output_text}}",
          reference: "a",
          operation: "like",
          pass_threshold: 1,
        },
      ],
      calculate_output: "1 - one",
    },
    [
      ["a", 0],
      ["b", 1],
    ],
  ],
];

for (const [item, cases] of tables)
  test(`scores of ${JSON.stringify(item).slice(0, 120)}`, async () => {
    const reward = rewardFrom(item);
    const samples = cases.map(([answer, , columns]) => sampleOf(answer, columns));
    const scores = await reward.score(samples, contextOf());
    for (const [i, [answer, expected, columns]] of cases.entries()) {
      const said = `${JSON.stringify(answer)} with ${JSON.stringify(columns ?? {})}: ${scores[i]}, expected ${expected}`;
      if (expected === null || scores[i] === null) assert.equal(scores[i], expected, said);
      else assert.ok(Math.abs(scores[i]! - expected) < 1e-6, said);
    }
  });

test("the token that ends an answer does not count in its length", async () => {
  const reward = rewardFrom({ type: "length", min: 3, max: 3 });
  const finished = { ...sampleOf("abcd"), isFinished: true };
  assert.deepEqual(await reward.score([sampleOf("abc"), finished, sampleOf("abcd")], contextOf()), [1, 1, 0]);
});

test("a pattern that never ends is stopped, with row and reward named", async () => {
  const reward = rewardFrom({ type: "regex", name: "spaced", pattern: "^(a+)+$" });
  const before = performance.now();
  await assert.rejects(reward.score([sampleOf("ok"), sampleOf(`${"a".repeat(60)}!`, {}, "rows.jsonl:7")], contextOf()), {
    code: "REWARD",
    message: /^rows\.jsonl:7: the reward spaced worked over 2 s on an answer of 61 characters, and was stopped: .*\(a\+\)\+/,
  });
  assert.ok(performance.now() - before < 30_000);
  assert.deepEqual(await reward.score([sampleOf("aaa")], contextOf()), [1]);
});

test("answers of any size and depth are judged in bounded time", async () => {
  const deep = "[".repeat(200_000) + "]".repeat(200_000);
  const large = JSON.stringify(Array.from({ length: 200_000 }, (_, i) => ({ i })));
  for (const item of [
    { type: "json" },
    { type: "json", schema: { type: "array", uniqueItems: false } },
    { type: "numeric", reference: "1" },
    { type: "format" },
    { type: "string_check", input: "{{ sample.output_json.a }}", reference: "x", operation: "eq" },
  ]) {
    const scores = await rewardFrom(item).score([sampleOf(deep), sampleOf(large), sampleOf("1".repeat(1e6))], contextOf());
    assert.ok(
      scores.every((score) => score === 0 || score === 1),
      `${JSON.stringify(item)}: ${scores}`,
    );
  }
  const edit = rewardFrom({ type: "similarity", metric: "edit", reference: "b".repeat(200_000) });
  await assert.rejects(edit.score([sampleOf("a".repeat(200_000))], contextOf()), { code: "REWARD", message: /worked over 2 s/ });
});

test("rules take any answer and any row, and say a number from 0 to 1 or nothing", async () => {
  const rewards = tables.map(([item]) => rewardFrom(item));
  await fc.assert(
    fc.asyncProperty(
      fc.string({ unit: "binary", maxLength: 40 }),
      fc.dictionary(fc.constantFrom("answer", "a", "gold", "word"), fc.jsonValue()),
      async (answer, columns) => {
        for (const reward of rewards) {
          const [score] = await reward.score([sampleOf(answer, columns)], contextOf());
          assert.ok(score === null || (score! >= 0 && score! <= 1), `${reward.name}: ${score}`);
        }
      },
    ),
    { numRuns: 40 },
  );
});

test("what is wrong with an item is told by item, setting and remedy", () => {
  const wrong: readonly (readonly [item: unknown, message: RegExp])[] = [
    [{}, /^item 1: type: expected one of regex, .*; there is none$/],
    [{ type: "regexp" }, /item 1: type: .*got "regexp"\. Did you mean "regex"\?/],
    [{ type: "regex" }, /^item 1 \(regex\): pattern is missing$/],
    [{ type: "regex", pattern: "(" }, /^item 1 \(regex\): Invalid regular expression/],
    [{ type: "regex", pattern: "a", flags: "g" }, /flags: expected of i/],
    [
      { type: "regex", patern: "a" },
      /there is no setting "patern"\. Did you mean "pattern"\? Its settings: name, weight, pattern, flags/,
    ],
    [{ type: "regex", pattern: "a", weight: 0 }, /weight: 0 would change nothing/],
    [{ type: "regex", pattern: "a", weight: "much" }, /weight: .*expected number/],
    [{ type: "regex", pattern: "a", name: "a/b" }, /name: expected letters/],
    [
      { type: "exact_match", reference: "{{ row.answer }}" },
      /reference: "\{\{ row\.answer \}\}" is not known: expected \{\{ item\.column \}\}/,
    ],
    [{ type: "exact_match", reference: "{{ item.answer" }, /reference: "\{\{" at character 1 has no "\}\}"/],
    [{ type: "json", schema: { type: "thing" } }, /schema: schema is invalid: .*type/],
    [{ type: "json", schema: { $ref: "http://elsewhere/schema.json" } }, /schema: can't resolve reference/],
    [{ type: "length" }, /expected target, or min and max, or one of them/],
    [{ type: "length", min: 3, max: 2 }, /min is above max/],
    [{ type: "length", target: 3, max: 2 }, /expected target, or min and max/],
    [{ type: "format", tags: ["<think>"] }, /tags: item 1: expected the name of a tag, without brackets/],
    [{ type: "similarity", metric: "rouge" }, /metric: /],
    [{ type: "python", source: "…" }, /item 1: python is not there: attune runs no Python; write the function in JavaScript/],
    [{ type: "score_model" }, /score_model is not there: it asks a model of OpenAI's/],
    [
      { type: "text_similarity", input: "a", reference: "b", evaluation_metric: "cosine" },
      /cosine is not there: it needs a model of embeddings/,
    ],
    [
      { type: "text_similarity", input: "a", reference: "b", evaluation_metric: "rouge_9" },
      /expected one of fuzzy_match, bleu, rouge_1 to rouge_5, rouge_l, got "rouge_9"/,
    ],
    [{ type: "multi", graders: {}, calculate_output: "1" }, /there are no graders/],
    [{ type: "multi", graders: { a: { type: "python" } }, calculate_output: "a" }, /graders.*python is not there/],
    [
      {
        type: "multi",
        graders: { a: { type: "string_check", input: "x", reference: "y", operation: "eq" } },
        calculate_output: "a + b",
      },
      /calculate_output names b, and the graders are a/,
    ],
    [
      {
        type: "multi",
        graders: { a: { type: "string_check", input: "x", reference: "y", operation: "eq" } },
        calculate_output: "a +",
      },
      /calculate_output: expected a number, a name or a parenthesis at character 4/,
    ],
    [{ type: "api", url: "ftp://x" }, /url: expected http:\/\/… or https:\/\/…/],
    [{ type: "api", url: "http://me:secret@x" }, /url: holds a password; name the variable that holds it in key_env/],
    [{ type: "module" }, /module is missing/],
  ];
  for (const [item, message] of wrong) {
    const { error } = rewardKeys.rewards.safeParse([item]);
    assert.match(String(error?.issues[0]?.message), message, JSON.stringify(item));
  }
  const twice = rewardKeys.rewards.safeParse([
    { type: "json", name: "a" },
    { type: "json", name: "a" },
  ]);
  assert.equal(twice.error?.issues[0]?.message, "two rewards are called a");
  assert.ok(ConfigError);
});

test("who has no name is called by its type, and what was checked checks again to the same", () => {
  const items = rewardKeys.rewards.parse([
    { type: "json" },
    { type: "json", weight: -2 },
    { type: "length", max: 5, name: "json_3" },
    { type: "json" },
  ]);
  assert.deepEqual(
    items.map(({ name, weight }) => [name, weight]),
    [
      ["json", 1],
      ["json_2", -2],
      ["json_3", 1],
      ["json_4", 1],
    ],
  );
  assert.deepEqual(rewardKeys.rewards.parse(items), items);
  assert.deepEqual(rewardKeys.rewards.parse(undefined), []);
});

test("numbers in texts", () => {
  const cases: readonly (readonly [string, number | null])[] = [
    ["1,234", 1234],
    ["1,23", 23],
    ["12,345,678.9", 12345678.9],
    ["-.5", -0.5],
    ["10-5", 5],
    ["x2", null],
    ["3 / 4", 0.75],
    ["1/0", null],
    ["1e3", 1000],
    ["5.", 5],
    ["50%", 50],
    ["\\boxed{7} and 8", 7],
    ["#### 9 then 10", 10],
    ["", null],
    ["٣", null],
  ];
  for (const [text, expected] of cases) assert.equal(numberIn(text), expected, text);
});

test("formulas are arithmetic and nothing else", () => {
  const values = { a: 3, b: 0.5, 名: 2 };
  const cases: readonly (readonly [string, number])[] = [
    ["1 + 2 * 3", 7],
    ["(1 + 2) * 3", 9],
    ["2 ^ 3 ^ 2", 512],
    ["-2 ^ 2", -4],
    ["2 ^ -1", 0.5],
    ["7 - 2 - 1", 4],
    ["8 / 4 / 2", 1],
    ["min(a, b, 1)", 0.5],
    ["max(a, b)", 3],
    ["abs(-a)", 3],
    ["floor(a * b)", 1],
    ["ceil(a * b)", 2],
    ["exp(0)", 1],
    ["sqrt(4)", 2],
    ["log(1)", 0],
    [" a ", 3],
    ["1e-2*.5", 0.005],
    ["a/0", Infinity],
    ["名 + 1", 3],
    ["--a", 3],
  ];
  for (const [formula, expected] of cases) assert.equal(parseFormula(formula).value(values), expected, formula);
  assert.deepEqual(parseFormula("a + max(b, a)").names, ["a", "b"]);
  for (const formula of [
    "",
    "a b",
    "1 +",
    "(1",
    "1)",
    "eval(1)",
    "abs(1, 2)",
    "a.b",
    "a[0]",
    "constructor(1)",
    "1; 2",
    "a = 1",
    "`x`",
    `${"(".repeat(100)}1${")".repeat(100)}`,
    `${"-".repeat(1000)}1`,
    "1".repeat(20_000),
    "toString()",
  ])
    assert.throws(() => parseFormula(formula), SyntaxError, formula.slice(0, 20));
});

test("templates take columns and answers, and no more", () => {
  const sample = sampleOf('{"k": [1, {"deep": "v"}]}', { a: "A", "b-c": [{ x: true }], n: null });
  const cases: readonly (readonly [string, string | null])[] = [
    ["plain", "plain"],
    ["{{item.a}}-{{ item.a }}", "A-A"],
    ["{{ item.b-c[0].x }}", "true"],
    ["{{ item.b-c }}", '[{"x":true}]'],
    ['{{ item["b-c"][0] }}', '{"x":true}'],
    ["{{ item.n }}", null],
    ["{{ item.none }}", null],
    ["{{ item.toString }}", null],
    ["{{ item.a.length }}", null],
    ["{{ sample.output_json.k[1].deep }}", "v"],
    ["{{ sample.output_json.none }}", ""],
    ["a } b", "a } b"],
  ];
  for (const [source, expected] of cases) assert.equal(parseTemplate(source).render(sample), expected, source);
  for (const source of [
    "{{",
    "{{ }}",
    "{{ item }}",
    "{{ sample.output_tools }}",
    "{{ sample.model }}",
    "{{ item.a | upper }}",
    "{{ process.env.X }}",
  ])
    assert.throws(() => parseTemplate(source), SyntaxError, source);
});
