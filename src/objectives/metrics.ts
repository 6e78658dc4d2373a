/** Numbers by name, in groups where there are many of a kind. */
export interface Metrics {
  readonly [name: string]: number | Metrics;
}
