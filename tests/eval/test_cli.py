"""`wavcse eval` end to end, and what it says to wrong usage."""

from __future__ import annotations

import csv
import json
import shutil
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from wavcse.eval.__main__ import main
from wavcse.eval.arguments import EVAL
from wavcse.eval.report import main as report_main
from wavcse.tests.helpers.killed import run_killed, started
from wavcse.tests.helpers.processes import run_python

SAMPLING_RATE = 16_000
TONES_HZ = {"low": 300, "middle": 900, "high": 2700}
SPLIT_OF_SPEAKER = dict(zip("abcdefgh", ["train"] * 4 + ["validation"] * 2 + ["test"] * 2))
NUM_TAKES = 6


def write_corpus(folder: Path) -> Path:
    """Tones in noise: the keyword is the pitch, the speaker the loudness; one of the test files is no audio."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for number, (speaker, split) in enumerate(SPLIT_OF_SPEAKER.items()):
        loudness = 0.1 + 0.03 * (3 * number % 8)  # the test speakers lie inside the range of the training speakers
        for take in range(NUM_TAKES):
            for keyword, frequency_hz in TONES_HZ.items():
                time_s = np.arange(rng.integers(6000, 9000)) / SAMPLING_RATE
                tone = np.sin(2 * np.pi * frequency_hz * time_s) + 0.1 * rng.standard_normal(len(time_s))
                name = f"{speaker}_{keyword}_{take}.flac"
                soundfile.write(folder / name, loudness * tone, SAMPLING_RATE)
                rows.append((name, keyword, speaker, split, ("train", "validation", "test")[take % 3]))
    (folder / rows[-1][0]).write_bytes(b"fLaC, but broken")
    columns = ["file_name", "keyword", "speaker_id", "split", "split_sid"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "metadata.csv", index=False)
    return folder / "metadata.csv"


@dataclass(frozen=True)
class Done:
    """Exit code and standard output of a command."""

    code: int
    stdout: str


@pytest.fixture(scope="module")
def run(tiny_model, quick_probes, tmp_path_factory) -> tuple[Path, Done]:
    """One evaluation by the command: the folder in which it ran, and what it answered."""
    folder = tmp_path_factory.mktemp("eval")
    write_corpus(folder / "corpus")
    tiny_model().save_pretrained(folder / "hub")
    command = [
        *("--model", "hub", "--manifest", str(folder / "corpus/metadata.csv")),
        *("--tasks", "keyword,speaker", "--baselines", "majority,mfcc,last_layer", "--output_dir", "out"),
        *("--seeds", "2", "--device", "cpu", "--note", "upstream with random weights"),
    ]
    with redirect_stdout(StringIO()) as stdout, chdir(folder):
        code = main(command)
    return folder, Done(code, stdout.getvalue())


def record_of(folder: Path, task: str, encoder: str) -> dict:
    return json.loads((folder / f"out/results/{task}__{encoder}.json").read_text())


def test_exit_code_and_skipped_clips(run):
    folder, done = run
    assert done.code == 3
    with open(folder / "out/skipped.csv", newline="") as file:
        (entry,) = csv.DictReader(file)
    assert entry["clip"] == "h_high_5.flac"
    assert entry["reason"].startswith("h_high_5.flac: cannot be read as audio")
    assert "1 clips were skipped, see out/skipped.csv" in done.stdout
    assert done.stdout.startswith("keyword: 3 classes of 72 training clips: high 24, low 24, middle 24\nspeaker: 8 classes of")


def test_one_result_file_per_task_and_encoder(run):
    folder, _ = run
    encoders = ("last_layer", "majority", "mfcc", "wavcse")
    assert sorted(path.name for path in (folder / "out/results").iterdir()) == [
        f"{task}__{encoder}.json" for task in ("keyword", "speaker") for encoder in encoders
    ]


def test_figures(run):
    folder, _ = run
    mfcc = record_of(folder, "keyword", "mfcc")["metrics"]
    assert mfcc["accuracy"] == {"value": 1.0, "interval": [1.0, 1.0], "greater_is_better": True, "unit": "percent"}
    majority = record_of(folder, "keyword", "majority")["metrics"]
    assert majority["accuracy"]["value"] == pytest.approx(11 / 35)  # "high", the first of three equals, less one file
    assert majority["uar"]["value"] == pytest.approx(1 / 3)


def test_result_file_says_where_the_figures_come_from(run):
    folder, _ = run
    record = record_of(folder, "keyword", "wavcse")
    assert record["counts"]["clips"] == {"train": 72, "validation": 36, "test": 35}
    assert record["counts"]["speakers"] == {"train": 4, "validation": 2, "test": 2}
    assert record["counts"]["classes"]["test"] == {"high": 11, "low": 12, "middle": 12}
    assert record["skipped_clips"] == 1
    assert record["interval"]["unit"] == "speaker"
    assert record["interval"]["units"] == 2
    assert [run["seed"] for run in record["probe"]["runs"]] == [0, 1]
    assert record["metrics"]["accuracy"]["value"] == pytest.approx(
        np.mean([run["accuracy"] for run in record["probe"]["runs"]])
    )
    assert record["encoder"]["model"] == "hub"
    assert len(record["encoder"]["weights_sha256"]) == 64
    assert record["manifests"][0]["path"] == "corpus/metadata.csv"
    assert record["manifests"][0]["split_column"] == "split"
    assert record["note"] == "upstream with random weights"
    assert set(record["versions"]) == {"python", "wavcse", "torch", "transformers", "numpy", "scikit-learn"}
    assert set(record["seconds"]) == {"embedding", "probe"}
    assert record_of(folder, "speaker", "wavcse")["interval"]["unit"] == "clip"


def test_predictions_of_every_test_clip_are_kept(run):
    folder, _ = run
    record = record_of(folder, "keyword", "wavcse")
    table = pd.read_parquet(folder / "out/predictions/keyword__wavcse.parquet")
    assert list(table.columns) == ["clip_id", "group", "label", "prediction_0", "prediction_1"]
    assert (table["clip_id"].str[0] == table["group"]).all()
    assert set(table["group"]) == {"g", "h"}
    assert (table["label"] == table["clip_id"].str.split("_").str[1]).all()
    for seed, run_record in enumerate(record["probe"]["runs"]):
        assert (table[f"prediction_{seed}"] == table["label"]).mean() == pytest.approx(run_record["accuracy"])
    speakers = pd.read_parquet(folder / "out/predictions/speaker__wavcse.parquet")
    assert (speakers["group"] == speakers["clip_id"]).all()


def test_pictures_have_their_data(run):
    folder, _ = run
    confusion = record_of(folder, "keyword", "mfcc")["figures"]["confusion"]
    assert confusion == {"labels": ["high", "low", "middle"], "counts": [[11, 0, 0], [0, 12, 0], [0, 0, 12]]}
    first = record_of(folder, "keyword", "wavcse")["figures"]["map"]
    assert len(first["x"]) == len(first["y"]) == 35
    assert sorted(first["label"]) == ["high"] * 11 + ["low"] * 12 + ["middle"] * 12
    assert "map" not in record_of(folder, "keyword", "mfcc")["figures"]


def text_of(path: Path) -> str:
    return pd.read_parquet(path).to_csv() if path.suffix == ".parquet" else path.read_bytes().decode(errors="ignore")


def test_nothing_written_holds_an_absolute_path(run):
    folder, _ = run
    written = [path for path in (folder / "out").rglob("*") if path.is_file()]
    kinds = {path.relative_to(folder / "out").parts[0] for path in written}
    assert kinds >= {"results", "predictions", "embeddings", "results.md", "skipped.csv"}
    assert not [path for path in written if str(folder) in text_of(path)]


def test_table(run):
    folder, done = run
    table = (folder / "out/results.md").read_text()
    assert table in done.stdout
    lines = table.splitlines()
    assert "| wavcse | last_layer | mfcc | majority |" in lines[0]
    assert lines[2].startswith("| Keyword spotting | ")
    assert "35 clips, 2 speakers" in lines[2]
    assert "| **100.0** [100.0, 100.0] | 31.4" in lines[2]  # mfcc, majority
    assert "[29.4, 33.3] |" in lines[2]
    assert "- Keyword spotting: 1 clips were left out, see skipped.csv." in lines
    assert lines[-1] == "- Note: upstream with random weights"


COMMON = ("--tasks", "keyword,speaker", "--seeds", "2", "--device", "cpu", "--note", "upstream with random weights")


def again(run, monkeypatch, out: Path, *options: str) -> int:
    """The command of `run` in a copy of its output, without any audio being embedded: that is an error here."""
    folder, _ = run
    monkeypatch.chdir(folder)

    def refuse(*_):
        raise AssertionError("a clip was embedded")

    monkeypatch.setattr("wavcse.eval.embeddings.checked_embeddings", refuse)
    arguments = [
        "--model",
        "hub",
        "--manifest",
        str(folder / "corpus/metadata.csv"),
        "--baselines",
        "majority,mfcc,last_layer",
    ]
    return main([*arguments, *COMMON, "--output_dir", str(out), *options])


@pytest.fixture
def copied(run, tmp_path) -> Path:
    shutil.copytree(run[0] / "out", tmp_path / "out")
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "results").iterdir())}


def test_a_finished_evaluation_is_not_computed_again(run, copied, monkeypatch, capsys):
    before = contents(copied)
    assert again(run, monkeypatch, copied) == 3  # the skipped clip is still told
    assert contents(copied) == before
    assert "1 clips were skipped" in capsys.readouterr().out


def test_an_interrupted_evaluation_goes_on_with_what_it_has(run, copied, monkeypatch):
    before = {name: json.loads(text) for name, text in contents(copied).items()}
    (copied / "results/keyword__mfcc.json").unlink()
    (copied / "predictions/keyword__wavcse.parquet").unlink()  # a kill between the two files
    # The broken clip is tried again, but is not audio, so no encoder meets it.
    assert again(run, monkeypatch, copied) == 3
    after = {name: json.loads(text) for name, text in contents(copied).items()}
    assert set(after) == set(before)
    for name in before:
        assert after[name]["metrics"] == before[name]["metrics"]
    assert (copied / "predictions/keyword__wavcse.parquet").exists()
    assert after["keyword__last_layer.json"] == before["keyword__last_layer.json"]


@pytest.mark.parametrize("change", [("--seeds", "1"), ("--note", "another"), ("--overwrite",)])
def test_other_settings_are_computed_again(change, run, copied, monkeypatch):
    folder, _ = run
    dates = {}
    for name, text in contents(copied).items():
        record = json.loads(text)
        del record["crc32"]
        dates[name] = record["date"]
        (copied / "results" / name).write_text(json.dumps({**record, "date": "long ago"}))
    monkeypatch.chdir(folder)
    options = [
        "--manifest",
        str(folder / "corpus/metadata.csv"),
        "--baselines",
        "mfcc",
        *COMMON,
        "--tasks",
        "keyword",
        *change,
    ]
    assert main([*options, "--output_dir", str(copied)]) == 3
    assert json.loads((copied / "results/keyword__mfcc.json").read_text())["date"] != "long ago"
    assert json.loads((copied / "results/keyword__wavcse.json").read_text())["date"] == "long ago"


def test_table_is_made_again_byte_by_byte_from_the_result_files(run, capsys):
    folder, _ = run
    path = folder / "out/results.md"
    original = path.read_bytes()
    path.unlink()
    assert report_main([str(folder / "out"), "--table_only"]) == 0
    assert path.read_bytes() == original
    assert capsys.readouterr().out.encode() == original


def test_the_same_command_gives_the_same_figures(run, tmp_path):
    folder, _ = run
    common = ["--manifest", str(folder / "corpus/metadata.csv"), "--baselines", "mfcc", "--seeds", "2"]
    assert main([*common, "--tasks", "speaker", "--output_dir", str(tmp_path), "--device", "cpu"]) == 3
    again = json.loads((tmp_path / "results/speaker__mfcc.json").read_text())
    assert again["metrics"] == record_of(folder, "speaker", "mfcc")["metrics"]


def test_test_labels_change_the_figures_but_not_the_choices(run, tmp_path):
    folder, _ = run
    table = pd.read_csv(folder / "corpus/metadata.csv", dtype=str)
    is_test = table["split"] == "test"
    table.loc[is_test, "keyword"] = table.loc[is_test, "keyword"].map({"low": "high", "high": "middle", "middle": "low"})
    table["file_name"] = [f"{folder}/corpus/{name}" for name in table["file_name"]]
    table.to_csv(tmp_path / "relabelled.csv", index=False)
    arguments = ["--manifest", str(tmp_path / "relabelled.csv"), "--tasks", "keyword", "--baselines", "mfcc", "--seeds", "2"]
    assert main([*arguments, "--output_dir", str(tmp_path), "--device", "cpu"]) == 3
    changed = json.loads((tmp_path / "results/keyword__mfcc.json").read_text())
    original = record_of(folder, "keyword", "mfcc")
    chosen = [[run[key] for run in record["probe"]["runs"] for key in ("learning_rate", "epoch", "validation_accuracy")]
              for record in (changed, original)]  # fmt: skip
    assert chosen[0] == chosen[1]
    assert changed["metrics"]["accuracy"]["value"] == 0.0  # the predictions stayed what they were: all correct before


def test_yaml_with_overrides(tmp_path):
    (tmp_path / "eval.yaml").write_text(
        "output_dir: out\nbaselines: [mfcc]\nmanifest: a.csv\nseeds: 3\n"
        "tasks:\n  keyword:\n  emotion: {manifest: [b.csv, c.csv], split_column: fold, disjoint_by: null}\n"
    )
    arguments = EVAL.parse([str(tmp_path / "eval.yaml"), "--seeds", "5", "--baselines", "mfcc,majority"])
    assert (arguments.seeds, arguments.baselines, arguments.output_dir) == (5, ["mfcc", "majority"], "out")
    (keyword, keyword_manifests, _), (emotion, emotion_manifests, _) = arguments.requests()
    assert (keyword.split_columns, keyword_manifests) == (("split_ks", "split"), ["a.csv"])
    assert (emotion.split_columns, emotion.disjoint_by, emotion_manifests) == (("fold",), None, ["b.csv", "c.csv"])
    only = EVAL.parse([str(tmp_path / "eval.yaml"), "--tasks", "emotion"])
    assert [(task.name, manifests) for task, manifests, _ in only.requests()] == [("emotion", ["b.csv", "c.csv"])]


def test_a_checkpoint_is_pooled_over_time_as_asked(run, upstream_folder, tmp_path):
    """Named by the recipe, or by an option, which wins."""
    settings = {"model": upstream_folder, "manifest": run[0] / "corpus/metadata.csv", "tasks": "[keyword]", "device": "cpu"}
    settings |= {"baselines": "[last_layer]", "temporal_pooling": "mean_std", "output_dir": tmp_path / "out"}
    (tmp_path / "eval.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    assert main([str(tmp_path / "eval.yaml"), "--name", "both"]) == 3
    assert main([str(tmp_path / "eval.yaml"), "--name", "means", "--temporal_pooling", "mean"]) == 3
    both, means = (record_of(tmp_path, "keyword", f"{name}_last_layer")["encoder"] for name in ("both", "means"))
    assert (both["embedding_size"], both["temporal_pooling"]) == (64, "mean_std")
    assert means["embedding_size"] == 32
    assert "temporal_pooling" not in means
    assert (tmp_path / "out/results.md").read_text().count("pooled over time by mean_std") == 1


def test_two_instances_of_a_task_and_trials(tmp_path):
    (tmp_path / "eval.yaml").write_text(
        "output_dir: out\nbaselines: [mfcc]\ntasks:\n"
        "  keyword_ar: {task: keyword, title: Keywords (ar), manifest: ar.csv, note: few clips}\n"
        "  affect_el: {task: affect, manifest: el.csv}\n"
        "  verification: {manifest: sv/m.csv, trials: sv/trials.csv}\n"
    )
    keyword, affect, verification = EVAL.parse([str(tmp_path / "eval.yaml")]).requests()
    assert (keyword.task.name, keyword.task.family, keyword.task.title) == ("keyword_ar", "keyword", "Keywords (ar)")
    assert keyword.task.note == "few clips"
    assert affect.task.row_name(affect.task.targets[0]) == "affect_el_valence"
    assert verification.trials == "sv/trials.csv"


WRONG = {
    "--tasks keyword --output_dir o --manifest m.csv": "Nothing to evaluate",
    "--tasks word --output_dir o --manifest m.csv --baselines mfcc": "the task is 'word' (did you mean keyword?)",
    "--output_dir o --manifest m.csv --baselines mfcc": "No task is given",
    "--tasks keyword --manifest m.csv --baselines mfcc": "--out is missing",
    "--tasks keyword --output_dir o --baselines mfcc": "no manifest",
    "--tasks keyword --output_dir o --manifest m.csv --baselines mfcc": "m.csv: no such file",
    "--tasks keyword --output_dir o --manifest {corpus} --baselines lpc": "unknown ['lpc']; allowed: last_layer, mean_layers",
    "--tasks keyword --output_dir o --manifest {corpus} --baselines last_layer": "give --model",
    "--tasks keyword --output_dir o --manifest {corpus} --model runs/x/hub": "'runs/x/hub' cannot be loaded",
    "--tasks keyword --output_dir {corpus} --manifest {corpus} --baselines mfcc": "cannot be made as a folder",
    "--tasks emotion --output_dir o --manifest {corpus} --baselines mfcc": "no column 'emotion'",
    "--tasks keyword --output_dir o --manifest {corpus} --baselines mfcc --seeds 0": "seeds is 0",
    "--tasks keyword --output_dir o --manifest {corpus} --baselines mfcc --name a/b": "name is 'a/b'",
    "--tasks keyword --output_dir {corpus}/o --manifest {corpus} --baselines mfcc --name mfcc --model {hub}": "its own name",
    "--tasks verification --output_dir o --manifest {corpus} --baselines mfcc": "needs a list of trials",
    "--tasks keyword --output_dir o --manifest {corpus} --baselines mfcc --device gpu": "'gpu', which is not available",
    "absent.yaml": "cannot be read as YAML",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage_is_one_clear_line(line, run, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(line.format(corpus=run[0] / "corpus/metadata.csv", hub=run[0] / "hub").split()) == 2
    (message,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("wavcse eval: ")]
    assert WRONG[line] in message


WRONG_TASKS = {
    "a/b: {task: keyword}": "tasks.a/b: the name is 'a/b'; it names files",
    "keyword: {trails: t.csv}": "tasks.keyword: unknown fields ['trails'] (did you mean trials?)",
    "keyword: {title: 3}": "title is 3; a text is needed",
    "keyword_x: {task: word}": "tasks.keyword_x: task is 'word' (did you mean keyword?); allowed: keyword",
    "keyword: [a]": "tasks.keyword: must hold fields of the form",
    "keyword: {disjoint_by: ''}": "disjoint_by is ''; it must name a column, or be null",
    "keyword: {disjoint_by: [speaker_id]}": "disjoint_by is ['speaker_id']; a text or null is needed",
    "keyword: {manifest: 3}": "tasks.keyword: manifest is 3; a list of texts is needed",
    "affect: {label_column: valence}": "label_column is for tasks with one label",
}


@pytest.mark.parametrize("task", WRONG_TASKS)
def test_wrong_settings_of_a_task(task, tmp_path, capsys):
    (tmp_path / "eval.yaml").write_text(f"output_dir: {tmp_path}/out\nbaselines: [mfcc]\nmanifest: m.csv\ntasks:\n  {task}\n")
    assert main([str(tmp_path / "eval.yaml")]) == 2
    assert WRONG_TASKS[task] in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting",
    [
        *("name: 3", "output_dir: 3", "baselines: [3]", "manifest: 3", "device: 0", "note: 3", "batch_seconds: .inf"),
        *("temporal_pooling: median", "temporal_pooling: [mean]"),
    ],
)
def test_settings_of_a_wrong_type(setting, tmp_path, capsys):
    sound = {"output_dir": f"{tmp_path}/out", "baselines": "[mfcc]", "manifest": "m.csv", "tasks": "[keyword]"}
    name, value = setting.split(": ")
    (tmp_path / "eval.yaml").write_text("".join(f"{key}: {text}\n" for key, text in {**sound, name: value}.items()))
    assert main([str(tmp_path / "eval.yaml")]) == 2
    assert f"wavcse eval: {name} is " in capsys.readouterr().err


def test_it_runs_as_a_module(tmp_path):
    done = run_python("-m", "wavcse.eval", "absent.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "absent.yaml: cannot be read as YAML" in done.stderr


def test_results_of_nothing(tmp_path, capsys):
    assert report_main([str(tmp_path), "--table_only"]) == 2
    assert "holds no results/*.json" in capsys.readouterr().err


def test_a_task_that_lost_a_split_is_refused_but_the_others_are_written(run, tmp_path, capsys):
    folder, _ = run
    table = pd.read_csv(folder / "corpus/metadata.csv", dtype=str)
    table["file_name"] = [f"{folder}/corpus/{name}" for name in table["file_name"]]
    table["emotion"] = ["calm", "happy"] * (len(table) // 2)
    table["split_er"] = table["split"].replace("test", "")
    table.loc[len(table) - 1, "split_er"] = "test"  # the broken file is the only test clip
    table.to_csv(tmp_path / "m.csv", index=False)
    arguments = ["--manifest", str(tmp_path / "m.csv"), "--tasks", "emotion,keyword", "--baselines", "mfcc"]
    assert main([*arguments, "--output_dir", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "task 'emotion': 1 of 109 clips could not be embedded" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out/results").iterdir()] == ["keyword__mfcc.json"]
    assert "Keyword spotting" in (tmp_path / "out/results.md").read_text()


@pytest.mark.kill
def test_an_evaluation_killed_ten_times_at_random_moments_is_the_undisturbed_one(tiny_model, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    tiny_model().save_pretrained(tmp_path / "hub")
    options = ["--model", str(tmp_path / "hub"), "--manifest", str(corpus), "--tasks", "keyword,speaker"]
    options += ["--baselines", "majority,mfcc", "--seeds", "2", "--device", "cpu"]

    def contents_of(folder):
        records = [json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))]
        volatile = ("date", "seconds", "crc32")
        records = [{name: value for name, value in record.items() if name not in volatile} for record in records]
        predictions = {path.name: path.read_bytes() for path in sorted((folder / "predictions").iterdir())}
        return records, predictions, (folder / "results.md").read_text(), (folder / "skipped.csv").read_text()

    def check(folder):
        assert contents_of(folder) == contents_of(tmp_path / "undisturbed")
        assert not list(folder.rglob("*.partial"))

    start = lambda folder: started(main, [*options, "--output_dir", str(folder)])  # noqa: E731
    print(run_killed(start, tmp_path, check, codes=(3,)))
