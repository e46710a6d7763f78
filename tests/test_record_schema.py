"""Every record that the library can write, and every committed one, fits workflow/schemas/record.schema.yaml."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from llmstudy.runner import record as records
from llmstudy.runner.parent import Outcome

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = yaml.safe_load((ROOT / "workflow" / "schemas" / "record.schema.yaml").read_text())
COMMITTED = sorted((ROOT / "results").glob("*/records/**/*.json"))
JOB = {
    "identity": {
        "study": "s",
        "kind": "speed",
        "model": "m",
        "weights": "real",
        "precision": "fp32",
        "attention": "sdpa",
        "runtime": "generate",
        "repeat": 0,
    },
    "device": "auto",
    "settings": {},
}


def parts(schema):
    """Every object and property below a schema."""
    yield schema
    for child in schema.get("properties", {}).values():
        yield from parts(child)


def test_the_schema_is_one_and_describes_every_key():
    Draft202012Validator.check_schema(SCHEMA)
    for part in parts(SCHEMA):
        assert part.get("description"), part
        assert "properties" not in part or part["additionalProperties"] is False


@pytest.mark.parametrize("status", records.STATUSES)
def test_a_record_of_any_status_fits(status):
    failed = Outcome(status, "why", {"traceback": ["line"]}, 1.5)
    Draft202012Validator(SCHEMA).validate(records.compose(JOB, failed, {}))


def test_a_record_with_another_key_or_status_does_not_fit():
    validator = Draft202012Validator(SCHEMA)
    good = records.compose(JOB, Outcome("ok", ""), {})
    assert validator.is_valid(good)
    assert not validator.is_valid(good | {"extra": 1})
    assert not validator.is_valid(good | {"status": "fine"})
    assert not validator.is_valid(good | {"identity": good["identity"] | {"weights": "fake"}})


@pytest.mark.skipif(not COMMITTED, reason="no study is committed")
def test_committed_records_fit():
    validator = Draft202012Validator(SCHEMA)
    for path in COMMITTED:
        errors = [error.message for error in validator.iter_errors(json.loads(path.read_text()))]
        assert not errors, f"{path.relative_to(ROOT)}: {errors}"
