"""Columns that name what a row of the study's tables is about."""

CONFIGURATION = ["model", "precision", "attention", "runtime"]
IDENTITY = ["study", "model", "weights", "precision", "attention", "runtime", "device"]
WORKLOAD = ["batch", "prompt_tokens", "new_tokens"]
PROTOCOL = ["corpus", "protocol"]
