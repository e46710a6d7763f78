"""Statistics that compare precisions: intervals, divergences, cross-overs, capacity and the verdict.

NumPy and pandas only; nothing here imports torch. Conventions of every module:

- An interval is a 95 % interval. Where the sample cannot support one (a single repeat, too few blocks) its ends are
  NaN, never equal to the estimate.
- The unit that is resampled or counted is the independent one: a document for quality, a process for latency.
- Random draws come from `numpy.random.default_rng(seed)`; equal seeds give equal intervals.
- Many comparisons in one study: p-values of one quantity in one model are adjusted by Holm's method before a
  difference counts; intervals are shown unadjusted, as the measurement gave them.
"""
