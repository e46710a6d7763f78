"""Starts the interpreted kernel tests, in a process of their own: Triton reads TRITON_INTERPRET when it is imported."""

import importlib.util
import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton==3.7.1"
)
@pytest.mark.parametrize("cases", ["fixed_cases.py", "kernel_cases.py", "step_cases.py"])
def test_interpreted(repository, cases):
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", f"tests/interpreted/{cases}"],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
