"""What is published: the model of a run, the figures that were measured with exactly these weights, how it was trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.repocard import metadata_load
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.data.files import read_result
from wavcse.eval.encoder import SavedModel
from wavcse.finetuned_wavcse import FinetunedWavCSE, FinetunedWavCSEConfig
from wavcse.modeling_wavcse import WavCSEModel

if TYPE_CHECKING:
    from wavcse.eval.results import Result

RESULT_FILES = "*__*.json"
NAMED = "wavcse-"  # names of models that a checkout of this repository holds in its root begin so (as in tools/arguments.py)
CARD = "card.md"  # among results: the sections of a card that was made for one model (`tools/readme.py`)
TRAINING_RESULT = "phase1.json"
MODELS = {WavCSEConfig.model_type: WavCSEModel, FinetunedWavCSEConfig.model_type: FinetunedWavCSE}
TRAINING_FIELDS = ("tasks", "best_epoch", "num_epochs", "train_seconds", "num_processes", "device", "config", "versions")


@dataclass(frozen=True)
class PushSource:
    """A model with what is known of it.

    Attributes:
        model: folder with `config.json` and safetensors.
        config: read from it.
        sha256: of its weights, as result files name them.
        results: folder that `wavcse eval` wrote.
        records: all result records of the evaluation, of this model and of baselines; empty if there was none.
        own: those of `records` that were measured with these weights, baselines left out.
        training: the result of the training run, `None` for a bare model folder.
    """

    model: Path
    config: WavCSEConfig
    sha256: str
    results: Path
    records: list[Result]
    own: list[Result]
    training: dict[str, Any] | None

    @property
    def is_checkout(self) -> bool:
        """Whether the model is the one in the root of this repository, of which only the model is published."""
        return _is_checkout(self.model)

    def card_sections(self) -> dict[str, str]:
        """Markdown per title of the `card.md` beside the results; none if there is no such file.

        Raises:
            ValueError: it is about other weights.
        """
        path = self.results / CARD
        if not path.is_file():
            return {}
        text = path.read_text(encoding="utf-8")
        if self.sha256 not in text:
            raise ValueError(f"{path}: is about other weights; run `python -m wavcse.tools.readme`, or name other --results.")
        titled = (section.partition("\n") for section in text.split("\n## ")[1:])
        return {title: body.strip() for title, _, body in titled}


def read_source(run: str | Path, results: str | Path | None = None) -> PushSource:
    """Find the model and its results.

    Args:
        run: a run folder (its `hub/` is the model), or the folder of a saved model.
        results: folder that `wavcse eval` wrote, with `results/*.json`; if not given, the run folder, or of a checkout the
            results of the model in its root.

    Raises:
        ValueError: there is no wavCSE model, its weights are not finite, a result file cannot be read, or the results are of
            other weights.
    """
    run = Path(run)
    model = run if (run / "config.json").is_file() else run / "hub"
    config = _read_config(run, model)
    sha256 = SavedModel(str(model)).weights_sha256()
    _refuse_non_finite(model)
    place = Path(results or (run / results_of(name_of_root(run)) if _is_checkout(run) else run))
    records = _read_records(place, required=results is not None)
    return PushSource(
        model=model,
        config=config,
        sha256=sha256,
        results=place,
        records=records,
        own=_own_records(records, sha256, place),
        training=read_training(place / TRAINING_RESULT) or read_training(run / "results" / TRAINING_RESULT),
    )


def name_of_root(folder: Path) -> str | None:
    """What the model in the root of this repository is called: a tag in the header of README.md; `None` without one."""
    readme = folder / "README.md"
    header = (metadata_load(readme) or {}) if readme.is_file() else {}
    return next((tag for tag in header.get("tags") or () if str(tag).startswith(NAMED)), None)


def results_of(name: str) -> Path:
    """Where a checkout keeps what is known of a model of this name, which need not be in its root any more."""
    return Path("results") / name.removeprefix(NAMED)


def _is_checkout(folder: Path) -> bool:
    name = name_of_root(folder) if (folder / "setup.py").is_file() else None
    return name is not None and (folder / results_of(name)).is_dir()


def _read_config(run: Path, model: Path) -> WavCSEConfig:
    path = model / "config.json"
    if not path.is_file():
        raise ValueError(f"{run}: holds no model. Give a run folder with hub/config.json, or the folder of a saved model.")
    try:
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{path}: is not the configuration of a model ({error}).") from error
    if model_type not in MODELS:
        raise ValueError(f"{path}: is of type {model_type!r}, not of a wavCSE model.")
    if not any((model / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        raise ValueError(f"{model}: holds no {SAFE_WEIGHTS_NAME}; only safetensors are published.")
    return MODELS[model_type].config_class.from_pretrained(model)


def _refuse_non_finite(model: Path) -> None:
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():
                if not weights.get_tensor(name).isfinite().all():
                    raise ValueError(
                        f"{path}: {name} holds NaN or infinity, as a training that diverged leaves it; such a model embeds "
                        "nothing. Train it again."
                    )


def read_training(path: Path) -> dict[str, Any] | None:
    """The result of a training run, `None` if there is no such file; ValueError if it is not one."""
    if not path.is_file():
        return None
    remedy = "Train again with this version, or push the model folder alone."
    return read_result(path, TRAINING_FIELDS, "the result of a training run", remedy)


def _read_records(place: Path, required: bool) -> list[Result]:
    if not required and not any((place / "results").glob(RESULT_FILES)):
        return []
    # Imported late: a model without results is published without the evaluation's libraries.
    from wavcse.eval.results import read_results
    from wavcse.eval.table import rows_of

    records = read_results(place)
    rows_of(records)  # refuses rows of different metrics
    return records


def _own_records(records: list[Result], sha256: str, place: Path) -> list[Result]:
    if not records:
        return []
    from wavcse.eval.baselines import BASELINES

    own = [
        record
        for record in records
        if record.encoder.get("weights_sha256") == sha256 and record.encoder["name"] not in BASELINES
    ]
    if not own:
        raise ValueError(
            f"{place}/results: none of the {len(records)} results is of these weights (sha256 {sha256[:12]}). "
            "Evaluate this model again, name other results with --results, or push the model folder alone."
        )
    return own
