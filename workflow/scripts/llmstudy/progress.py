"""Progress of long steps: a bar on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

LOG_INTERVAL_S = 10.0


class LogBar(tqdm):
    """A ``tqdm`` that writes whole lines instead of redrawing one: carriage returns make a log unreadable.

    Use it wherever a library takes a ``tqdm`` class.
    """

    def __init__(self, *args, **settings):
        lines = "{desc}: {n_fmt}/{total_fmt} {unit} in {elapsed} ({rate_fmt})"
        super().__init__(*args, **settings | {"mininterval": LOG_INTERVAL_S, "miniters": 1, "bar_format": lines})

    def close(self):
        if not self.disable:
            self.display()
            self.sp = None  # the final line stays; tqdm would add an empty one
        super().close()

    @staticmethod
    def status_printer(file):
        return lambda status: print(status.strip(), file=file, flush=True) if status.strip() else None


def progress(iterable: Iterable[Item], what: str, total: int | None = None, unit: str = "items") -> Iterator[Item]:
    """Yield the items while showing how many are done of ``total``, which an ``iterable`` with a length need not say.

    A script whose ``sys.stderr`` goes to its log gets lines there, and still a bar on the terminal that started it.
    """
    if not sys.stderr.isatty():
        iterable = LogBar(iterable, desc=what, total=total, unit=unit, file=sys.stderr)
    if sys.__stderr__ is not None and sys.__stderr__.isatty():
        iterable = tqdm(iterable, desc=what, total=total, unit=f" {unit}", file=sys.__stderr__)
    yield from iterable
