"""Statistics: numbers in, numbers out; no files, no tables, no sentences.

Conventions of every module:

- An interval is a 95 % interval. Where the sample supports none (a single repeat, too few blocks) its ends are NaN,
  never equal to the estimate.
- The unit that is resampled or counted is the independent one: a document for quality, a process for times.
- Random draws have a fixed seed: equal numbers give equal intervals.
- Many comparisons in one study: the p-values of one quantity in one model are adjusted by Holm's method before a
  difference counts; intervals are shown unadjusted. Speed-ups of panels have simultaneous intervals instead.
"""
