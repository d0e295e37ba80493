"""What the Hub asks of the header of a model card."""

from __future__ import annotations

import re

import yaml


def card_errors(content: str) -> list[str]:
    """What is wrong with a card's header, after the Hub's published rules for model cards."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    header = yaml.safe_load(match[1]) if match else None
    if not isinstance(header, dict):
        return ["no metadata block"]
    errors = []
    names = {"license": r"[a-z0-9.-]+", "library_name": r"[\w.-]+", "pipeline_tag": r"[a-z-]+"}
    lists = {"language": r"[a-z]{2,3}", "tags": r".+", "metrics": r"[\w-]+", "datasets": r"[\w.-]+(/[\w.-]+)?"}
    lists["base_model"] = lists["datasets"]
    for field, pattern in {**names, **lists}.items():
        value = header.get(field, [])
        values = value if isinstance(value, list) and field in lists else [value] if field in header else []
        errors += [f'"{field}" with value {v!r} is not valid' for v in values if not re.fullmatch(pattern, str(v))]
    for model in header.get("model-index", []):
        errors += [] if model.get("name") else ['"model-index[].name" is required']
        for result in model["results"]:
            errors += [] if result["task"].get("type") else ['"task.type" is required']
            errors += [f'"dataset.{key}" is required' for key in ("name", "type") if not result["dataset"].get(key)]
            for metric in result["metrics"]:
                errors += [f'"metrics.{key}" is required' for key in ("type", "value") if metric.get(key) is None]
    return errors
