"""Write the tables of config/README.md, every key of a study and its values, from the schema and the registries.

Run it from the repository's root after a change of either: python tools/describe_config.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from llmstudy.config import SCHEMA  # noqa: E402
from llmstudy.models import attention, precisions  # noqa: E402

README = Path("config/README.md")
BEGIN = "<!-- Written by tools/describe_config.py: edit the schema instead. -->"
END = "<!-- End of what describe_config.py writes. -->"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "minLength": "length ≥"}


class Group(NamedTuple):
    """The keys of one object: its heading, a sentence, and a row for each key."""

    title: str
    text: str
    rows: list[list[str]]


def describe(schema: dict) -> str:
    """Return all tables in the schema's order."""
    parts = []
    for group in groups(schema, schema, "", set()):
        lines = table(["key", "value", "default", "meaning"], group.rows)
        parts.append("\n\n".join(filter(None, [f"### {group.title}", group.text, lines])))
    return "\n\n".join([*parts, precision_table(), attention_table()])


def groups(node: dict, schema: dict, path: str, seen: set[str], title: str = "") -> Iterator[Group]:
    """Yield an object and all objects below it; a definition that is used twice is described once."""
    required = node.get("required", [])
    rows, below = [], []
    for name, raw in node["properties"].items():
        part = resolve(raw, schema)
        below += objects(raw, schema, f"{path}{name}", seen)
        if "const" not in part and ("properties" not in part or "$ref" in raw):
            rows.append(row(name, part, schema, name in required))
    if rows:
        text = node.get("description", "") if path and not path.endswith("[].") else ""
        yield Group(title or (f"`{path.rstrip('.')}`" if path else "The study"), text, rows)
    for child_path, child, heading in below:
        yield from groups(child, schema, f"{child_path}.", seen, heading)


def objects(raw: dict, schema: dict, path: str, seen: set[str]) -> list[tuple[str, dict, str]]:
    """Return (path, schema, heading) of the objects that a value may be or hold."""
    found: list[tuple[str, dict, str]] = []
    part = resolve(raw, schema)
    for candidate, at in ((raw, path), (part.get("items", {}), f"{path}[]")):
        item = resolve(candidate, schema)
        if "properties" in item and candidate.get("$ref") not in seen:
            seen.update(filter(None, [candidate.get("$ref")]))
            found.append((at, item, ""))
    for branch in part.get("oneOf", []):
        if "type" in branch.get("properties", {}):
            found.append((path, branch, f"`{path}` with `type: {branch['properties']['type']['const']}`"))
    return found


def resolve(node: dict, schema: dict) -> dict:
    """Return the node merged with the definition that it refers to; the node's keys win."""
    while "$ref" in node:
        definition = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        node = definition | {key: value for key, value in node.items() if key != "$ref"}
    return node


def row(name: str, part: dict, schema: dict, required: bool) -> list[str]:
    """Return the cells of a key: its name, values, default and meaning."""
    default = "required" if required else f"`{json.dumps(part['default'])}`" if "default" in part else "–"
    return [f"`{name}`", kind(part, schema), default, part.get("description", "")]


def kind(part: dict, schema: dict) -> str:
    """Return the values that a key takes."""
    part = resolve(part, schema)
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if any("type" in branch.get("properties", {}) for branch in part.get("oneOf", [])):
        return "one of " + ", ".join(f"`type: {one['properties']['type']['const']}`" for one in part["oneOf"])
    for choice in ("oneOf", "anyOf"):
        if choice in part:
            return " or ".join(kind(branch, schema) for branch in part[choice])
    types = [part["type"]] if isinstance(part["type"], str) else part["type"]
    if "array" in types:
        return f"list of {kind(part['items'], schema)}" + (" or `null`" if "null" in types else "")
    if "object" in types and "properties" in part:
        return "`{" + ", ".join(part["properties"]) + "}`"
    words = " or ".join({"null": "`null`", "object": "mapping"}.get(name, name) for name in types)
    return ", ".join([words, *(f"{sign} {part[bound]:g}" for bound, sign in BOUNDS.items() if bound in part)])


def precision_table() -> str:
    """Return the table of all precisions; x stands for what tells a family's members apart."""
    rows = []
    for name in precisions.MODULES:
        one = precisions.get(name.replace("<x>", "7"))
        title = one.title.replace("7.0", "x").replace(" 7", " x") if "<x>" in name else one.title
        facts = [f"{one.weight_bits:g}", f"`{one.compute_dtype}`", "this project" if one.own else "library"]
        rows.append([f"`{name}`", title, *facts, ", ".join(one.devices)])
    head = ["precision", "what it is", "bits per linear weight", "computes in", "kernels", "devices"]
    return "### Values of `precisions`\n\n" + table(head, rows)


def attention_table() -> str:
    """Return the table of all attention kernels."""
    rows = [
        [f"`{name}`", f"`{one.implementation}`", f"`{one.backend}`" if one.backend else "not forced"]
        for name, one in attention.CHOICES.items()
    ]
    return "### Values of `attention`\n\n" + table(["name", "transformers' implementation", "PyTorch backend"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in cells
    )


def insert(page: str, tables: str) -> str:
    """Return the page with the tables between its two markers."""
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n\n{tables}\n\n{END}", page, flags=re.S)


if __name__ == "__main__":
    made = describe(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))
    README.write_text(insert(README.read_text(encoding="utf-8"), made), encoding="utf-8")
