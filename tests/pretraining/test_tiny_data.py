"""What wavcse-tiny is pre-trained on, looked up with pandas alone: nothing that its evaluation holds back."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest

from wavcse.pretraining.arguments import PRETRAIN, PretrainArguments
from wavcse.pretraining.clips import load_clips

ROOT = Path(__file__).parents[2]
RECIPES = ("conf/pretrain_tiny.yaml", "conf/pretrain_tiny_lasr.yaml")
DATA, SPEECH, TWINS = (ROOT / place for place in ("../shared/data", "../shared/pretrain", "runs/eval_synthetic/speech"))
# RAVDESS and nEMO are non-commercial; the others have voices of the test splits, or speakers that nobody knows.
EXCLUDED_FOLDERS = ("ravdess_speech", "nemo_pl", "coffee_intent", "lid_extra")
EXCLUDED_CORPORA = ("kerstin", "speech_to_intent", "precise_community")
DISJOINT = ("speech_commands_9", "arabic_commands_10", "librispeech_mini", "lid_extra")  # by the speakers of `split`
HEARD = ("train", "")  # in a split column; all else is held out


@dataclass(frozen=True)
class Found:
    """What is wrong with some clips: how many are of excluded corpora, are held out, or are by speakers that are."""

    excluded: int
    held_out: int
    by_held_out_speakers: int


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # paths in recipes are relative to it


def table_of(path: Path) -> pd.DataFrame:
    """A manifest with `path` of every clip."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return table.assign(path=[os.path.realpath(path.parent / name) for name in table["file_name"]])


def held_out_paths() -> set[str]:
    """Of all clips that any table of ../shared/data names as validation or test, or as a part of a trial."""
    paths: set[str] = set()
    for manifest in [DATA / "lid_index.csv", *sorted(DATA.glob("*/metadata.csv"))]:
        table = table_of(manifest)
        for column in [name for name in table.columns if name.startswith("split")]:
            paths |= set(table.loc[~table[column].isin(HEARD), "path"])
    trials = pd.read_csv(DATA / "librispeech_mini" / "sv_trials.csv", dtype=str)
    files = {*trials["file_a"], *trials["file_b"]}
    return paths | {os.path.realpath(DATA / "librispeech_mini" / name) for name in files}


def held_out_speakers() -> set[str]:
    tables = [table_of(DATA / corpus / "metadata.csv") for corpus in DISJOINT]
    return set().union(*(table.loc[~table["split"].isin(HEARD), "speaker_id"] for table in tables)) - {""}


def taken_rows(args: PretrainArguments) -> pd.DataFrame:
    """The rows of the sources' manifests that pre-training takes: `path`, `speaker_id`, `corpus` as the tables say them."""
    sources = args.clip_sources()
    taken = load_clips(sources, args.label_column, args.exclude_speakers_of, args.exclude_split_columns).clips
    places = pd.DataFrame(
        [(os.path.realpath(clip.path), clip.start_s, -1.0 if clip.end_s is None else clip.end_s) for clip in taken],
        columns=["path", "start", "end"],
    )
    stated = pd.concat([table_of(Path(source.manifest)) for source in sources.values()], ignore_index=True).fillna("")
    for column, whole in (("start", 0.0), ("end", -1.0)):
        stated[column] = [float(text) if text else whole for text in stated[column]]
    found = places.merge(stated, on=["path", "start", "end"], how="left", validate="one_to_one", indicator=True)
    assert (found["_merge"] == "both").all()
    return found


def look_for(rows: pd.DataFrame) -> Found:
    folders = [str((DATA / folder).resolve()) + os.sep for folder in EXCLUDED_FOLDERS]
    is_excluded = rows["path"].str.startswith(tuple(folders)) | rows["corpus"].isin(EXCLUDED_CORPORA)
    is_held_out, is_by_one = rows["path"].isin(held_out_paths()), rows["speaker_id"].isin(held_out_speakers())
    return Found(*(int(found.sum()) for found in (is_excluded, is_held_out, is_by_one)))


def read(recipe: str) -> PretrainArguments:
    """A recipe, or a skip where the real recordings are not there; without the synthetic ones where they are not."""
    for file, what in ((DATA / "lid_index.csv", "evaluation corpora"), (SPEECH / "manifest.csv", "pre-training speech")):
        if not file.is_file():
            pytest.skip(f"{os.path.relpath(file.parent, ROOT)} ({what}) is not here")
    args = PRETRAIN.parse([recipe])
    is_there = {name: Path(source["manifest"]).is_file() for name, source in args.data.items()}
    assert all(is_there[name] or is_twin(source["manifest"]) for name, source in args.data.items())
    args.data = {name: source for name, source in args.data.items() if is_there[name]}
    return args


def is_twin(manifest: str) -> bool:
    return Path(manifest).resolve().is_relative_to(TWINS.resolve())


def test_both_stages_hear_the_same_clips():
    first, second = (PRETRAIN.parse([recipe]) for recipe in RECIPES)
    for field in ("data", "exclude_speakers_of", "exclude_split_columns"):
        assert getattr(first, field) == getattr(second, field)


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_that_the_evaluation_holds_back_is_heard(recipe):
    rows = taken_rows(read(recipe))
    assert len(rows) > 5000
    assert {"librispeech", "speech_commands", "arabic_sc"} <= set(rows["corpus"])
    assert look_for(rows) == Found(0, 0, 0)


@pytest.mark.slow
def test_it_would_be_noticed():
    """Without the recipe's filters and held-out speakers the same look finds each of the three."""
    args = read(RECIPES[0])
    data = {name: {"manifest": source["manifest"]} for name, source in args.data.items() if not is_twin(source["manifest"])}
    found = look_for(taken_rows(replace(args, data=data, exclude_speakers_of=[])))
    assert min(found.excluded, found.held_out, found.by_held_out_speakers) > 50
