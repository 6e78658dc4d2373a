import assert from "node:assert/strict";

/** Every value within `tolerance` of the one expected. */
export function assertClose(actual: Float32Array, expected: Float32Array, tolerance: number, what: string): void {
  assert.equal(actual.length, expected.length, what);
  const worst = actual.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i]!)), 0);
  assert.ok(worst <= tolerance, `${what}: largest difference ${worst}, allowed ${tolerance}`);
}
