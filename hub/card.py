"""The card of a run: what its results add to the card that follows from the configuration (`hub_repository_wavcse.py`).

    python -m wavcse.hub.card runs/mine --repo_id org/wavcse

prints it.
"""

from __future__ import annotations

from wavcse.hub.arguments import CARD, CardArguments

if __name__ == "__main__":
    CARD.answer()  # before the imports below, which take seconds

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from wavcse.data.files import shown_path
from wavcse.data.hub_datasets import copied_manifest, names_data_set
from wavcse.data.manifest import Manifest
from wavcse.hub.header import is_language
from wavcse.hub.source import PushSource, name_of_root, read_source
from wavcse.hub_repository_wavcse import PLACEHOLDER, hash_code_files, inert, model_card
from wavcse.reports.page import fenced, markdown_table
from wavcse.settings.command import DONE

DATASET_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Title of the card -> sections of a `card.md` that stand there.
SECTIONS_OF_CARD = {
    "Model details": ["The model", "Licences"],
    "Evaluation": ["What it is good for"],
    "Bias, risks and limits": ["Limits"],
    "Training details": ["What it was trained on", "How it was trained"],
}
HIDDEN_SETTINGS = ("tasks", "cache_dir")  # the first has a table of its own, the second is a place on one machine


def metadata_of(source: PushSource, model_id: str, **given: Any) -> dict[str, Any]:
    """Fields of the YAML header that follow from the results (see `huggingface_hub.ModelCardData`).

    Args:
        model_id: Hub id.
        given: fields that somebody states (`license` and its `license_name` and `license_link`, `language`, `base_model`,
            `tags`); they win, `None` is not said.
    """
    found: dict[str, Any] = _header_of_checkout(source.model) if source.is_checkout else {}
    if source.training and not source.is_checkout:
        found["base_model"] = base_model_of(source.training["config"])
        found["language"] = languages_of(source.training["config"])
    if source.own:
        from wavcse.hub.figures import corpora_of, figures_of, model_index

        corpora = {corpus for record in source.own for corpus in corpora_of(record)}
        found["datasets"] = sorted(filter(DATASET_ID.fullmatch, corpora))
        found["metrics"] = list(dict.fromkeys(record.primary for record in source.own))
        found["model_name"] = model_id.rpartition("/")[2]
        found["eval_results"] = model_index(figures_of(source.own))
    return {name: value for name, value in {**found, **_said(given)}.items() if value}


def sections_of(source: PushSource) -> dict[str, str]:
    """Markdown per title of the card, from the result files alone; of a model that has its own sections, these."""
    own = source.card_sections()
    if own:
        return {title: "\n\n".join(own[name] for name in names if name in own) for title, names in SECTIONS_OF_CARD.items()}
    sections = {}
    if source.records:
        sections["Evaluation"] = evaluation_section(source)
    limits = limits_of(source)
    if limits:
        sections["Bias, risks and limits"] = "\n".join(f"- {limit}" for limit in limits)
    if source.training:
        sections["Training details"] = training_section(source.training)
    return sections


def _header_of_checkout(root: Path) -> dict[str, Any]:
    """Languages, upstream and name as the README.md of this repository has them, which is a card too."""
    header = ModelCard.load(root / "README.md", ignore_metadata_errors=True).data.to_dict()
    return {**{name: header.get(name) for name in ("language", "base_model")}, "tags": [name_of_root(root)]}


def base_model_of(config: Mapping[str, Any]) -> str | None:
    """The upstream, where it is a Hub id and no folder of this machine."""
    upstream = config.get("upstream") or ""
    try:
        validate_repo_id(upstream)
    except HFValidationError:
        return None
    return upstream if "/" in upstream and not Path(upstream).exists() else None


def languages_of(config: Mapping[str, Any]) -> list[str]:
    """ISO 639 codes in the column `language` of the training manifests, and copies of data sets, that are still there."""
    sources = {str(source) for task in config["tasks"].values() for source in _as_list(task["manifest"])}
    paths = [copied_manifest(source) if names_data_set(source) else Path(source) for source in sorted(sources)]
    tables = [Manifest(str(path)).table for path in paths if path is not None and path.is_file()]
    found = {language for table in tables for language in table.get("language", ())}
    return sorted(filter(is_language, found))


def evaluation_section(source: PushSource) -> str:
    """The evaluation's own table of this model and the baselines, with its notes."""
    from wavcse.eval.table import compare, markdown_table, rows_of

    table = markdown_table(source.records, compare(rows_of(source.records), source.results))
    return f"Measured on the weights with SHA-256 `{source.sha256}`.\n\n{table.strip()}"


def limits_of(source: PushSource) -> list[str]:
    """What results say against relying on them: remarks and warnings of the runs, terms of the corpora."""
    training = source.training or {}
    remarks = [record.note for record in source.own] + [training.get("note")]
    limits = [f"Remark of the run: {remark}" for remark in dict.fromkeys(remarks) if remark]
    limits += [f"Warning of the training: {words}" for words in training.get("warnings", ())]
    tasks = [record.task for record in source.own]
    benchmarks = [task.benchmark for task in tasks if task.benchmark and task.benchmark["corpus"] == task.corpus]
    licences = {benchmark["title"]: benchmark["licence"] for benchmark in benchmarks}
    if licences:
        limits.append(
            "Terms of the corpora of the evaluation: " + "; ".join(f"{name}: {text}" for name, text in licences.items())
        )
    return inert(limits)


def training_section(training: Mapping[str, Any]) -> str:
    """Corpora with counts and accuracies, settings, circumstances."""
    training = inert(training)
    columns = ["task", "corpora", "classes", "clips: train, validation, test", "accuracy in %: validation, test"]
    rows = [_task_row(name, task, training["config"]["tasks"][name]) for name, task in training["tasks"].items()]
    lines = [
        markdown_table(columns, rows).replace(" --- ", "---"),
        "",
        "Accuracies are those of the heads that were trained with the embedding; the epoch was chosen on the validation "
        f"splits (epoch {training['best_epoch']} of {training['num_epochs']}).",
        "",
        fenced(_settings(training["config"]), "yaml"),
        "",
        f"Trained for {training['train_seconds']:g} s on cached features of the frozen upstream, in "
        f"{training['num_processes']} process(es) on {training['device']}; "
        + ", ".join(f"{name} {version}" for name, version in training["versions"].items())
        + ".",
    ]
    return "\n".join(lines)


def _task_row(name: str, task: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    corpora = ", ".join(f"`{shown_path(path)}`" for path in _as_list(settings["manifest"]))
    protocol = f" ({task['protocol']})" if task.get("protocol") else ""
    counts = ", ".join(str(task["num_clips"][split]) for split in ("train", "validation", "test"))
    if task.get("kind") == "regression":
        ccc, mae = (", ".join(f"{task[name][split]:.4g}" for split in ("validation", "test")) for name in ("ccc", "mae"))
        return [name, f"{corpora}{protocol}", "a number", counts, f"CCC {ccc}; mean absolute error {mae}"]
    accuracies = ", ".join(f"{100 * task['accuracy'][split]:.1f}" for split in ("validation", "test"))
    return [name, f"{corpora}{protocol}", task["num_classes"], counts, accuracies]


def _settings(config: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in config.items() if name not in HIDDEN_SETTINGS and value is not None}
    if "upstream" in shown:
        shown["upstream"] = shown_path(shown["upstream"])
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120).strip()


def _as_list(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _said(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


@CARD.main
def main(args: CardArguments) -> int:
    """Print the card of a run."""
    source = read_source(args.run, args.results)
    name, code_files = args.repo_id or PLACEHOLDER, hash_code_files(source.model)
    print(model_card(source.config, code_files, name, metadata_of(source, name), sections_of(source)))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
