"""Measurements that go wrong: a stand-in for ``llmstudy.measure`` in the real child process, without torch.

Python imports ``sitecustomize`` before anything else, so a module of that name on PYTHONPATH can put the stand-in where
the child looks for the real package.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from llmstudy.runner.job import Identity, Job, Limits

STAND_IN = """
import sys
import types
from pathlib import Path


class Session:
    def __init__(self, job, device, artifacts, save):
        self.job, self.device, self.artifacts, self.save = job, device, Path(artifacts), save
        self.provenance = {"threads": 1}

    def import_libraries(self):
        pass


def measure(session):
{body}


package = types.ModuleType("llmstudy.measure")
package.measure = measure
session = types.ModuleType("llmstudy.measure.session")
session.Session, session.resolve_device = Session, lambda device: "cpu"
sys.modules |= {"llmstudy.measure": package, "llmstudy.measure.session": session}
"""


def install(monkeypatch, folder: Path, body: str) -> None:
    """Let the child processes of this test run ``body`` as ``measure(session)``."""
    folder.mkdir(parents=True, exist_ok=True)
    code = STAND_IN.replace("{body}", textwrap.indent(textwrap.dedent(body).strip(), "    "))
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


def job(allocator: str | None = None, cases: str = "", device: str = "cpu", **limits) -> Job:
    """A job for such a measurement."""
    return Job(
        identity=Identity("tiny", "probe", "tiny", "bf16", "sdpa", "generate"),
        module="measure.probe",
        cases=cases,
        device=device,
        threads=1,
        model_folder="resources/models/tiny",
        corpora={},
        prompt_corpus="tiny-text",
        reference_folder="",
        settings={"workloads": []},
        allocator=allocator,
        limits=Limits(**{"seconds": 60} | limits),
    )


def alive(pid: int) -> bool:
    """Return whether a process exists and is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
