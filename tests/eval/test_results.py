"""The comparison table against figures, verdicts and files that the tests work out by themselves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from sklearn.metrics import accuracy_score, mean_absolute_error, roc_curve

from wavcse.data.files import read_json
from wavcse.eval.report import main, write_report
from wavcse.eval.results import Result, read_results
from wavcse.eval.table import PAPERS_COLUMN, compare, markdown_table, rows_of
from wavcse.tests.helpers.evaluation_folder import NOISE, add_result, make_folder, planted

TITLES = {
    "keyword": "Keyword spotting",
    "verification": "Speaker verification",
    "gender": "Gender recognition",
    "age": "Age recognition",
    "valence": "Affect: valence",
    "activation": "Affect: activation",
    "dominance": "Affect: dominance",
}


def cells(text: str) -> dict[str, dict[str, str]]:
    """Title -> column -> cell of the (first) table of a Markdown text."""
    lines = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    table = {line[0]: dict(zip(lines[0], line)) for line in lines[2:]}
    assert all(len(line) == len(lines[0]) for line in lines), text
    return table


def shown_number(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if round(value, decimals) else f"{0:.{decimals}f}"  # never "-0.0"


def predictions(folder: Path, row: str, encoder: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions" / f"{row}__{encoder}.parquet")


def independent_figure(row: str, table: pd.DataFrame) -> float:
    """The primary metric by another implementation than ours, in the unit of the table."""
    truth, predicted = table["label"].to_numpy(), table["prediction_0"].to_numpy()
    if row in ("keyword", "gender"):
        return 100 * accuracy_score(truth, predicted)
    if row == "verification":
        fpr, tpr, _ = roc_curve(truth, predicted)
        return 100 * brentq(lambda x: 1 - x - np.interp(x, fpr, tpr), 0, 1)
    if row == "age":
        return mean_absolute_error(truth, predicted)
    covariance = np.cov(truth, predicted, bias=True)
    return 2 * covariance[0, 1] / (covariance.trace() + (truth.mean() - predicted.mean()) ** 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("evaluation"), corpora={"gender": "timit"})


@pytest.fixture(scope="module")
def table(folder) -> str:
    return write_report(folder, table_only=True)


def test_figures_and_the_bold_one_are_those_of_the_predictions(folder, table):
    shown = cells(table)
    assert list(shown) == list(TITLES.values())  # the order of the tasks, targets in theirs
    for row, title in TITLES.items():
        figures = {name: independent_figure(row, predictions(folder, row, name)) for name in NOISE}
        is_error = row in ("verification", "age")
        best = (min if is_error else max)(figures, key=figures.get)
        decimals = {"age": 2, "valence": 3, "activation": 3, "dominance": 3}.get(row, 1)
        for name, figure in figures.items():
            value = shown_number(figure, decimals)
            value = f"**{value}**" if name == best else value
            assert re.match(re.escape(value) + r"†?(?: \[|$)", shown[title][name]), (row, name, shown[title][name], value)
        assert shown[title]["metric"].endswith("↓" if is_error else "↑")


def test_metric_words_and_sizes(table):
    shown = cells(table)
    assert shown["Keyword spotting"]["metric"] == "accuracy, % ↑"
    assert shown["Speaker verification"]["metric"] == "EER, % ↓"
    assert shown["Age recognition"]["metric"] == "MAE, years ↓"
    assert shown["Affect: valence"]["metric"] == "CCC ↑"
    assert shown["Keyword spotting"]["test split"] == "120 clips, 12 speakers"
    assert shown["Speaker verification"]["test split"] == "600 trials, 12 speakers"


def test_columns_are_models_then_baselines_in_their_order(table, folder):
    assert list(cells(table)["Keyword spotting"])[3:7] == ["wavcse", "best_layer", "mfcc", "majority"]
    records, renamed = [], {"mfcc": "hubert_last_layer", "best_layer": "zeta"}
    for record in read_results(folder):
        name = record.encoder["name"]
        records.append(replace(record, encoder={**record.encoder, "name": renamed.get(name, name)}))
    columns = list(cells(markdown_table(records))["Keyword spotting"])
    assert columns[3:7] == ["wavcse", "zeta", "hubert_last_layer", "majority"]


def test_intervals_are_those_of_the_records(folder, table):
    for record in read_results(folder):
        primary = record.metrics[record.primary]
        scale, decimals = {"percent": (100, 1), "years": (1, 2), "plain": (1, 3)}[primary.unit]
        low, high = (shown_number(scale * end, decimals) for end in primary.interval)
        assert cells(table)[record.task.title][record.encoder["name"]].endswith(f" [{low}, {high}]")


# -- significance


def resampled_accuracy_difference(ours: pd.DataFrame, theirs: pd.DataFrame, resamples: int = 2000) -> tuple[float, float]:
    """95 % of the difference of accuracies, by drawing names of speakers and collecting their clips; draws of its own."""
    rng = np.random.default_rng(123)
    right = [(own["prediction_0"] == own["label"]).to_numpy() for own in (ours, theirs)]
    clips_of = {speaker: np.flatnonzero(ours["group"] == speaker) for speaker in sorted(set(ours["group"]))}
    names, differences = list(clips_of), []
    for _ in range(resamples):
        clips = np.concatenate([clips_of[name] for name in rng.choice(names, len(names))])
        differences.append(right[0][clips].mean() - right[1][clips].mean())
    return tuple(np.quantile(differences, [0.025, 0.975]))


def test_marks_are_those_of_an_independent_paired_bootstrap(folder, table):
    ours = predictions(folder, "gender", "wavcse")
    found = {own.other: own for own in compare(rows_of(read_results(folder)), folder) if own.row == "gender"}
    verdicts = {}
    for name in ("best_layer", "mfcc", "majority"):
        low, high = resampled_accuracy_difference(ours, predictions(folder, "gender", name))
        verdicts[name] = low <= 0 <= high
        assert ("†" in cells(table)["Gender recognition"][name]) == verdicts[name]
        assert found[name].best == "wavcse"
        assert found[name].interval == pytest.approx((low, high), abs=0.015)
    assert verdicts == {"best_layer": True, "mfcc": False, "majority": False}


def test_pairing_tells_apart_what_intervals_do_not(tmp_path):
    """One clip of every speaker more: the two intervals overlap widely, the difference is the same in every resample."""
    speakers = np.repeat([f"s{i}" for i in range(12)], 20)
    truth = np.tile([0, 1], 120)
    hits = np.arange(240) % 20 < np.repeat(np.arange(4, 16), 20)  # hard and easy speakers
    for name, right in (("wavcse", hits | (np.arange(240) % 20 == 19)), ("mfcc", hits)):
        table = pd.DataFrame({"clip_id": np.arange(240).astype(str), "group": speakers, "label": truth})
        add_result(tmp_path, "gender", "gender", name, table.assign(prediction_0=np.where(right, truth, 1 - truth)), "x")
    ours, theirs = (record.metrics["accuracy"] for record in reversed(read_results(tmp_path)))
    assert ours.interval[0] < theirs.value < ours.value < theirs.interval[1]
    (found,) = compare(rows_of(read_results(tmp_path)), tmp_path)
    assert found.interval == pytest.approx((0.05, 0.05))
    assert found.mark == ""
    assert "†" not in cells(write_report(tmp_path, table_only=True))["Gender recognition"]["mfcc"]


def test_equal_encoders_are_both_best(tmp_path):
    for name in ("wavcse", "mfcc"):
        add_result(tmp_path, "age", "age", name, planted(np.random.default_rng(0), "age", 0.2), "x")
    add_result(tmp_path, "age", "age", "majority", planted(np.random.default_rng(0), "age", None), "x")
    shown = cells(write_report(tmp_path, table_only=True))["Age recognition"]
    assert [shown[name].startswith("**") for name in ("wavcse", "mfcc", "majority")] == [True, True, False]


def test_one_speaker_gives_no_interval_and_no_difference(tmp_path):
    for name, noise in (("wavcse", 0.1), ("mfcc", 0.9)):
        table = planted(np.random.default_rng(0), "gender", noise).assign(group="the one")
        add_result(tmp_path, "gender", "gender", name, table, "x")
    text = write_report(tmp_path, table_only=True)
    assert re.fullmatch(r"\*\*[\d.]+\*\*", cells(text)["Gender recognition"]["wavcse"])
    assert re.fullmatch(r"[\d.]+†", cells(text)["Gender recognition"]["mfcc"])
    assert "Gender recognition: one test speaker only, so there is no interval." in text


@pytest.mark.parametrize("way", ["missing", "other clips"])
def test_what_cannot_be_compared_is_marked_and_said(tmp_path, way):
    add_result(tmp_path, "gender", "gender", "wavcse", planted(np.random.default_rng(0), "gender", 0.1), "x")
    table = planted(np.random.default_rng(0), "gender", 0.4)
    add_result(tmp_path, "gender", "gender", "mfcc", table if way == "missing" else table.iloc[1:], "x")
    if way == "missing":
        (tmp_path / "predictions" / "gender__mfcc.parquet").unlink()
    text = write_report(tmp_path, table_only=True)
    assert "?" in cells(text)["Gender recognition"]["mfcc"]
    assert "- ? not tested against the best" in text
    assert ("do not compare them" in text) == (way == "other clips")


def test_order_of_rows_in_a_file_of_predictions_does_not_matter(tmp_path):
    for name, noise in (("wavcse", 0.1), ("mfcc", 0.4)):
        table = planted(np.random.default_rng(0), "gender", noise)
        add_result(tmp_path, "gender", "gender", name, table, "x")
    before = compare(rows_of(read_results(tmp_path)), tmp_path)
    path = tmp_path / "predictions" / "gender__mfcc.parquet"
    pd.read_parquet(path).sample(frac=1, random_state=0).to_parquet(path)
    assert compare(rows_of(read_results(tmp_path)), tmp_path) == before


# -- the paper


def test_the_papers_column_is_only_of_the_real_corpus(table, tmp_path):
    shown = cells(table)
    assert shown["Gender recognition"][PAPERS_COLUMN] == "99.8; LSTM 99.0"
    assert {shown[title][PAPERS_COLUMN] for title in TITLES.values() if title != "Gender recognition"} == {""}
    synthetic = write_report(make_folder(tmp_path, noise={"wavcse": 0.1, "majority": None}), table_only=True)
    assert PAPERS_COLUMN not in synthetic
    assert "paper" not in synthetic.lower()


@pytest.mark.parametrize(("protocol", "has_figure"), [("paper-guess", True), ("official-partial", False)])
def test_another_split_or_a_part_of_the_corpus_is_not_called_the_named_one(tmp_path, protocol, has_figure):
    add_result(tmp_path, "age", "age", "wavcse", planted(np.random.default_rng(0), "age", 0.1), "timit")
    (path,) = (tmp_path / "results").iterdir()
    record = read_json(path)
    words = record["task"]["benchmark"]["split_source"]
    assert words in write_report(tmp_path, table_only=True)
    record["task"]["protocols"] = [protocol]
    path.write_text(json.dumps(record))
    text = write_report(tmp_path, table_only=True)
    assert (PAPERS_COLUMN in text) == has_figure
    assert words not in text


def test_other_trials_are_not_to_be_compared(tmp_path):
    for name in ("wavcse", "mfcc"):
        add_result(tmp_path, "verification", "speaker_id", name, planted(np.random.default_rng(0), "verification", 0.3), "x")
    assert "do not compare" not in write_report(tmp_path, table_only=True)
    path = tmp_path / "results/verification__mfcc.json"
    path.write_text(json.dumps(read_json(path) | {"trials_sha256": "cd" * 32}))
    words = "Speaker verification: the encoders were tested on different clips; do not compare them."
    assert words in write_report(tmp_path, table_only=True)


def test_the_papers_best_baseline_has_the_smallest_error(tmp_path):
    """TIMIT age: MLP 6.66 and LSTM 5.97 years, wavCSE 3.79 (Table 4)."""
    add_result(tmp_path, "age", "age", "wavcse", planted(np.random.default_rng(0), "age", 0.1), "timit")
    assert cells(write_report(tmp_path, table_only=True))["Age recognition"][PAPERS_COLUMN] == "3.79; LSTM 5.97"


# -- notes


def test_notes(folder, table):
    assert "- Intervals resample speakers: " + ", ".join(TITLES.values()) + "." in table
    assert "- `wavcse`: runs/x/hub, weights sha256 0123456789ab, 20 dimensions." in table
    assert "- `best_layer`: runs/x/hub, layers 0-6, weights sha256 0123456789ab, 20 dimensions." in table
    assert "- `majority`: the same answer to every clip." in table
    layers = ", ".join(f"{title} 5" for title in TITLES.values())
    assert f"- `best_layer`, layers that validation chose: {layers}." in table
    sizes = "`wavcse` 50, `best_layer` 50, `mfcc` 50"
    assert f"- Speaker verification: PLDA, after an LDA to the size that validation chose: {sizes}." in table
    assert table.count("- Note: planted.") == 1


def test_tasks_with_speakers_on_both_sides_say_why(tmp_path):
    make_small(tmp_path)
    for path in (tmp_path / "results").iterdir():
        record = read_json(path)
        record["task"] |= {"disjoint_by": None, "note": "six speakers are too few to hold one out."}
        path.write_text(json.dumps(record))
    words = "- Gender recognition: test speakers are not held out of training: six speakers are too few to hold one out."
    assert words in write_report(tmp_path, table_only=True).splitlines()


def test_few_speakers_seeds_and_skipped_clips_are_said(tmp_path):
    table = planted(np.random.default_rng(0), "keyword", 0.3, seeds=3)
    few = table[table["group"] < "s08"]
    add_result(tmp_path, "keyword", "keyword", "wavcse", few, "x", skipped_clips=7)
    text = write_report(tmp_path, table_only=True)
    assert "Keyword spotting: only 8 test speakers, so the interval is too narrow." in text
    assert "Figures are means over 3 probe seeds." in text
    assert "Keyword spotting: 7 clips were left out, see skipped.csv." in text
    mean = np.mean([100 * accuracy_score(few["label"], few[f"prediction_{seed}"]) for seed in range(3)])
    assert cells(text)["Keyword spotting"]["wavcse"].startswith(f"**{mean:.1f}**")


# -- files


def test_same_files_give_the_same_bytes(folder, table):
    first = (folder / "results.md").read_bytes()
    assert first.decode() == table
    assert write_report(folder, table_only=True) == table
    assert (folder / "results.md").read_bytes() == first


def test_the_command_prints_the_table(folder, table, capsys):
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == table


def broken(folder: Path, how: str) -> None:
    path = folder / "results" / "gender__wavcse.json"
    record = read_json(path)
    if how == "cut":
        path.write_text(path.read_text()[:-40])
    elif how == "nan":
        record["metrics"]["accuracy"]["value"] = float("nan")
        path.write_text(json.dumps(record))
    elif how == "parquet":
        (folder / "predictions" / "gender__wavcse.parquet").write_bytes(b"PAR1 no table")
    elif how == "columns":
        table = predictions(folder, "gender", "wavcse").drop(columns="group")
        table.to_parquet(folder / "predictions" / "gender__wavcse.parquet")
    else:
        part, _, field = how.rpartition(".")
        del (record[part] if part else record)[field]
        path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("cut", "gender__wavcse.json"),
        ("parquet", "gender__wavcse.parquet"),
        ("columns", "group"),
        ("task.kind", "task.kind"),
        ("interval.unit", "interval.unit"),
        ("metrics.accuracy", "'accuracy'"),
        ("versions", "versions"),
        ("nan", "'accuracy' is not a finite number"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, capsys, how, named):
    make_small(tmp_path)
    broken(tmp_path, how)
    assert main([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert "gender" in captured.err


def make_small(folder: Path) -> None:
    for name, noise in (("wavcse", 0.1), ("mfcc", 0.4)):
        add_result(folder, "gender", "gender", name, planted(np.random.default_rng(0), "gender", noise), "x")


def test_an_empty_folder_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().err


COMMITTED = sorted(Path(__file__).parents[2].glob("results/**/results/*__*.json"))


def test_a_result_is_read_and_written_as_it_was():
    """Every committed result file, those of earlier versions too: the same fields in the same order."""
    assert len(COMMITTED) > 100
    for path in COMMITTED:
        record = read_json(path)
        assert json.dumps(Result.from_json(record).to_json()) == json.dumps(record), path
