"""Tasks and encoders whose vectors are planted, for analyses that have to find what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

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


def planted_study(folder: Path, tasks: Mapping[str, TaskData], views: Mapping[str, np.ndarray], seed: int = 0) -> Study:
    """A study of one encoder, `planted`, with these vectors `[N, E]`; all tasks are of the same clips."""
    readers = [CachedEncoder(name.replace(" ", "_"), 16_000, own.shape[1]) for name, own in views.items()]
    tables = {reader.name: own.astype(np.float32) for reader, own in zip(readers, views.values())}
    named = [View(name, place, layer=place) for place, name in enumerate(views)]
    encoder = AnalyzedEncoder("planted", readers, named, None, "planted")
    num_clips = len(next(iter(views.values())))
    embedded = EmbeddedClips(tables, np.ones(num_clips, dtype=bool))
    rows = {name: np.arange(num_clips) for name in tasks}
    return Study(folder, [encoder], tasks, rows, dict.fromkeys(tasks, ""), embedded, seed, "cpu")
