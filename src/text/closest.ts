/**
 * The candidate most like `word`, for "did you mean": fewest single-character edits (Levenshtein), at most a third of the word's
 * length. Undefined when nothing is that near.
 */
export function closest(word: string, candidates: Iterable<string>): string | undefined {
  let best: string | undefined;
  let bestEdits = Math.floor(Math.min(word.length, 64) / 3) + 1;
  for (const candidate of candidates) {
    if (Math.abs(candidate.length - word.length) >= bestEdits) continue;
    const edits = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (edits < bestEdits) [best, bestEdits] = [candidate, edits];
  }
  return best;
}

/**
 * Up to three candidates like `word`, best first: those with as few edits as `closest` wants, then those that share more than half of its
 * parts between underscores.
 */
export function nearest(word: string, candidates: Iterable<string>): string[] {
  const maxEdits = Math.floor(Math.min(word.length, 64) / 3);
  const parts = word.toLowerCase().split("_");
  const ranked = [...new Set(candidates)].map((candidate) => ({
    candidate,
    edits: Math.min(editDistance(word.slice(0, 64).toLowerCase(), candidate.toLowerCase()), maxEdits + 1),
    shared: candidate.split("_").filter((part) => part.length > 2 && parts.includes(part)).length,
  }));
  return ranked
    .filter(({ edits, shared }) => edits <= maxEdits || shared * 2 > parts.length)
    .sort((a, b) => a.edits - b.edits || b.shared - a.shared || a.candidate.length - b.candidate.length)
    .slice(0, 3)
    .map(({ candidate }) => candidate);
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const change = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, change));
    }
    row = next;
  }
  return row[b.length]!;
}
