/** Expressions: they have a value. */
export type Expr =
  | { readonly kind: "const"; readonly value: string | bigint | number | boolean | null }
  | { readonly kind: "name"; readonly name: string }
  | { readonly kind: "tuple" | "list"; readonly items: readonly Expr[] }
  | { readonly kind: "dict"; readonly pairs: readonly (readonly [Expr, Expr])[] }
  | { readonly kind: "attribute"; readonly object: Expr; readonly name: string }
  | { readonly kind: "item"; readonly object: Expr; readonly index: Expr }
  | { readonly kind: "slice"; readonly parts: readonly (Expr | undefined)[] }
  | { readonly kind: "call"; readonly callee: Expr; readonly args: Args }
  | Filter
  | { readonly kind: "test"; readonly name: string; readonly input: Expr; readonly args: Args }
  | { readonly kind: "unary"; readonly operator: "+" | "-"; readonly operand: Expr }
  | { readonly kind: "binary"; readonly operator: string; readonly left: Expr; readonly right: Expr }
  | { readonly kind: "concat"; readonly parts: readonly Expr[] }
  | { readonly kind: "compare"; readonly first: Expr; readonly rest: readonly (readonly [operator: string, right: Expr])[] }
  | { readonly kind: "and" | "or"; readonly left: Expr; readonly right: Expr }
  | { readonly kind: "not"; readonly operand: Expr }
  | { readonly kind: "conditional"; readonly test: Expr; readonly value: Expr; readonly otherwise: Expr | undefined };

/** `input` is undefined where a block gives it. */
export interface Filter {
  readonly kind: "filter";
  readonly name: string;
  readonly input: Expr | undefined;
  readonly args: Args;
}

export interface Args {
  readonly positional: readonly Expr[];
  readonly keywords: readonly (readonly [name: string, value: Expr])[];
  /** `*list` and `**dict`. */
  readonly rest?: Expr;
  readonly keywordRest?: Expr;
}

/** What is assigned to: a name, a namespace's attribute, or several of them. */
export type Target =
  | { readonly kind: "name"; readonly name: string }
  | { readonly kind: "namespace"; readonly name: string; readonly attribute: string }
  | { readonly kind: "targets"; readonly targets: readonly Target[] };

export interface Signature {
  readonly parameters: readonly { readonly name: string; readonly fallback: Expr | undefined }[];
  /** Which of `caller`, `kwargs` and `varargs` the body reads. */
  readonly reads: ReadonlySet<string>;
}

/** Statements: they write. */
export type Statement =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "output"; readonly value: Expr }
  | {
      readonly kind: "for";
      readonly target: Target;
      readonly list: Expr;
      readonly test: Expr | undefined;
      readonly isRecursive: boolean;
      readonly body: readonly Statement[];
      readonly otherwise: readonly Statement[];
    }
  | {
      readonly kind: "if";
      readonly branches: readonly (readonly [Expr, readonly Statement[]])[];
      readonly otherwise: readonly Statement[];
    }
  | { readonly kind: "set"; readonly target: Target; readonly value: Expr }
  | {
      readonly kind: "set-block";
      readonly target: Target;
      readonly filter: Filter | undefined;
      readonly body: readonly Statement[];
    }
  | { readonly kind: "macro"; readonly name: string; readonly signature: Signature; readonly body: readonly Statement[] }
  | { readonly kind: "call-block"; readonly call: Expr; readonly signature: Signature; readonly body: readonly Statement[] }
  | { readonly kind: "filter-block"; readonly filter: Filter; readonly body: readonly Statement[] }
  | { readonly kind: "with"; readonly values: readonly (readonly [Target, Expr])[]; readonly body: readonly Statement[] }
  | { readonly kind: "generation"; readonly body: readonly Statement[] }
  | { readonly kind: "break" | "continue" };
