"""When a warm-up is over."""

import math
from statistics import median


class SteadyState:
    """Collects warm-up durations and says when to stop.

    Steady means that the last `window` durations spread, as (max - min) / median, by less than `tolerance` (a
    fraction). Warm-up ends when that holds or after `maximum` durations, whichever is first:

        state = SteadyState()
        while not state.add(measure_once()):
            pass

    Afterwards `steady` says whether it ended well, `spread` how wide the last window was.
    """

    def __init__(self, window: int = 3, tolerance: float = 0.05, maximum: int = 10):
        if not 2 <= window <= maximum:
            raise ValueError(f"the window must lie between 2 and the maximum of {maximum}, not {window}")
        self._window = window
        self._tolerance = tolerance
        self._maximum = maximum
        self.durations: list[float] = []

    def add(self, duration: float) -> bool:
        """Note one duration (any unit) and return True if the warm-up is over."""
        self.durations.append(duration)
        return self.steady or len(self.durations) >= self._maximum

    @property
    def spread(self) -> float:
        """(max - min) / median of the last window; infinite before there is a full window."""
        if len(self.durations) < self._window:
            return math.inf
        last = self.durations[-self._window :]
        return (max(last) - min(last)) / median(last)

    @property
    def steady(self) -> bool:
        return self.spread < self._tolerance
