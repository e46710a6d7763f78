"""Jobs that a killed Snakemake left in SLURM's queue: list them, wait for them, or cancel them.

Run it from the repository's root before starting the study again: python tools/settle_jobs.py wait
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from llmstudy.errors import StudyError  # noqa: E402
from llmstudy.runner import slurm  # noqa: E402


def settle(action: str, interval_s: float) -> None:
    """Print the jobs of this folder; unless ``action`` is ``list``, wait until none is left.

    Raises StudyError without an answer of SLURM, or while the jobs have a living head.
    """
    jobs = slurm.queued_jobs(Path.cwd())
    print("\n".join(map(str, jobs)) or "no jobs of this folder are in the queue")
    if action == "list":
        return
    slurm.hold(Path.cwd()).close()
    if action == "cancel":
        slurm.cancel(jobs)
    # A cancelled job takes up to SLURM's KillWait to end, and may write until then.
    while jobs:
        time.sleep(interval_s)
        jobs = slurm.queued_jobs(Path.cwd())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["list", "wait", "cancel"])
    parser.add_argument("--interval", type=float, default=10, metavar="S", help="seconds between looks (default 10)")
    arguments = parser.parse_args()
    try:
        settle(arguments.action, arguments.interval)
    except StudyError as error:
        sys.exit(f"error: {error}")
