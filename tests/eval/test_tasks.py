"""The registry of tasks: the paper's twelve rows, each with corpus, split and published figures; leaks refused by the CLI.

Beside them a task of texts, which only fine-tuning can answer.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from wavcse.data.corpora import CORPORA
from wavcse.eval.__main__ import main
from wavcse.eval.evaluation import evaluate
from wavcse.eval.metrics import METRICS
from wavcse.eval.task import load_task
from wavcse.eval.tasks import TASKS

PAPERS = [task for task in TASKS.values() if task.kind != "transcription"]
ROWS = [(task, target) for task in PAPERS for target in task.targets]
BETTER = {"keyword", "language", "gender", "age", "dialect", "emotion", "valence", "activation", "dominance"}


def test_ten_tasks_give_the_papers_twelve_rows():
    names = [task.row_name(target) for task, target in ROWS]
    assert len(PAPERS) == 10
    assert list(TASKS) == [*(task.name for task in PAPERS), "transcription"]
    assert names == [
        *("keyword", "language", "speaker", "verification", "gender", "age", "dialect", "emotion"),
        *("valence", "activation", "dominance", "intent"),
    ]
    kinds = {kind: sum(task.kind == kind for task, _ in ROWS) for kind in ("classification", "regression", "verification")}
    assert kinds == {"classification": 7, "regression": 4, "verification": 1}  # section 3 of the paper


@pytest.mark.parametrize(("task", "target"), ROWS, ids=[task.row_name(target) for task, target in ROWS])
def test_a_row_says_where_its_data_and_figures_come_from(task, target):
    record = task.benchmark.record(target)
    assert all(record[name] for name in ("corpus", "title", "source", "licence", "split", "split_source", "origin"))
    assert record["metric"] == task.metrics[0]
    assert set(task.metrics) <= set(METRICS)
    assert record["corpus"] in CORPORA
    assert len(record["baselines"]) == 2
    compare = max if METRICS[record["metric"]].greater_is_better else min
    best = compare([record["paper"], *record["baselines"].values()])
    assert (best == record["paper"]) == (task.row_name(target) in BETTER)  # "nine out of twelve tasks"


def test_figures_are_shares_years_or_plain_numbers():
    for task, target in ROWS:
        record = task.benchmark.record(target)
        limit = 1 if METRICS[record["metric"]].unit != "years" else 100
        assert all(0 < figure < limit for figure in (record["paper"], *record["baselines"].values()))


def test_only_identification_knows_its_speakers():
    assert [task.name for task in TASKS.values() if task.disjoint_by is None] == ["speaker"]
    assert TASKS["speaker"].split_columns == ("split_sid",)
    assert all(task.split_columns[-1] == "split" for task in TASKS.values() if task.disjoint_by)


def test_every_task_is_described_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
    for task, target in ROWS:
        assert re.search(rf"\b{task.row_name(target)}\b", text)


def leaking(task, folder: Path) -> Path:
    """A manifest of the task's shape in which `mallory` both trains and is tested."""
    speakers = ["ann", "bob", "cid", "dan", "mallory", "mallory"]
    splits = ["train", "train", "validation", "validation", "train", "test"]
    values = {"regression": ["1", "2"], "classification": ["x", "y"], "verification": ["", ""]}[task.kind]
    labels = {target: values * 3 for target in task.targets if target != "speaker_id"}
    names = [f"{number}.wav" for number in range(6)]
    pd.DataFrame({"file_name": names, "speaker_id": speakers, "split": splits, **labels}).to_csv(folder / "m.csv", index=False)
    (folder / "trials.csv").write_text("label,enrolment,test\n1,4.wav,5.wav\n0,0.wav,5.wav\n")
    return folder / "m.csv"


@pytest.mark.parametrize("name", [task.name for task in PAPERS if task.disjoint_by])
def test_a_planted_leak_makes_the_command_refuse_and_name_the_speaker(name, tmp_path, capsys):
    manifest = leaking(TASKS[name], tmp_path)
    trials = f", trials: {tmp_path}/trials.csv" if TASKS[name].kind == "verification" else ""
    (tmp_path / "eval.yaml").write_text(
        f"output_dir: {tmp_path}/out\nbaselines: [mfcc]\ntasks:\n  {name}: {{manifest: {manifest}{trials}}}\n"
    )
    assert main([str(tmp_path / "eval.yaml")]) == 2
    message = capsys.readouterr().err
    assert f"task {name!r}" in message
    assert "speaker_id ['mallory'] occur in both train and test" in message
    assert not (tmp_path / "out").exists()


def test_embeddings_are_not_judged_by_texts(tmp_path, capsys):
    """The command refuses before a file is looked at, the function before anything is embedded."""
    where = ["--manifest", str(tmp_path / "m.csv"), "--out", str(tmp_path)]
    assert main(["--tasks", "transcription", "--baselines", "mfcc", *where]) == 2
    message = capsys.readouterr().err
    assert "tasks.transcription: is a transcription task" in message
    assert "wavcse finetune" in message
    with pytest.raises(ValueError, match="no text can be read off one vector per clip"):
        evaluate([object()], [texts_task(tmp_path)], tmp_path / "out")


def texts_task(folder: Path):
    """The task of texts on six files that are not audio, which nobody reads here."""
    texts = ["go on", "go up now", "stop", "no", "left", "right"]
    splits = ["train", "train", "validation", "validation", "test", "test"]
    names = [f"{number}.wav" for number in range(6)]
    for name in names:
        (folder / name).write_text(name)
    columns = {"file_name": names, "speaker_id": list("aabbcc"), "split_asr": splits, "text": texts}
    pd.DataFrame(columns).to_csv(folder / "m.csv", index=False)
    return load_task(TASKS["transcription"], [folder / "m.csv"])


def test_a_task_of_texts_has_texts_as_labels_which_need_not_occur_in_training(tmp_path):
    data = texts_task(tmp_path)
    assert data.labels.tolist() == ["go on", "go up now", "stop", "no", "left", "right"]
    assert data.classes == []
    assert data.training_counts() == "transcription: 5 words, 4 different ones, in 2 training clips"
    assert data.manifests[0].split_column == "split_asr"
