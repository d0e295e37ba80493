"""Studies on toy data: encoders whose vectors are planted, and the command on a corpus of tones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from wavcse.analysis.encoders import AnalyzedEncoder, View
from wavcse.analysis.study import Study
from wavcse.data.composite import TaskClips
from wavcse.data.manifest import Clip
from wavcse.eval.embeddings import EmbeddedClips
from wavcse.eval.encoder import CachedEncoder
from wavcse.eval.task import TaskData
from wavcse.eval.tasks import TASKS


def planted_task(labels: Sequence[str], speakers: Sequence[str], splits: Sequence[str], task: str = "keyword") -> TaskData:
    """A classification task of clips that are not there."""
    labels, speakers, splits = (np.array(own, dtype=object) for own in (labels, speakers, splits))
    clips = [Clip(f"{place}.wav", Path(f"{place}.wav")) for place in range(len(labels))]
    return TaskData(TASKS[task], TaskClips(task, clips, labels, splits, speakers, sorted(set(labels))), [])


def planted_encoder(
    tables: Mapping[str, np.ndarray], views: Mapping[str, np.ndarray], name: str = "planted"
) -> AnalyzedEncoder:
    """An encoder whose vectors are given, one reader per view; `tables` is filled."""
    readers = []
    for view, vectors in views.items():
        readers.append(CachedEncoder(f"{name}.{view.replace(' ', '_')}", 16_000, vectors.shape[1]))
        tables[readers[-1].name] = vectors.astype(np.float32)
    named = [View(view, place, layer=place) for place, view in enumerate(views)]
    return AnalyzedEncoder(name, readers, named, None, name)


@pytest.fixture
def planted_study(tmp_path) -> Callable[..., Study]:
    """Factory: `planted_study({task: TaskData}, {view: vectors}, seed=0)`; all tasks are of the same clips."""

    def make(tasks: Mapping[str, TaskData], views: Mapping[str, np.ndarray], seed: int = 0) -> Study:
        tables: dict[str, np.ndarray] = {}
        encoder = planted_encoder(tables, views)
        num_clips = len(next(iter(views.values())))
        embedded = EmbeddedClips(tables, np.ones(num_clips, dtype=bool))
        rows = dict.fromkeys(tasks, np.arange(num_clips))
        languages = dict.fromkeys(tasks, "")
        return Study(tmp_path, [encoder], tasks, rows, languages, embedded, seed, "cpu")

    return make
