"""Two small tasks of mteb on the recordings that lie beside the repository; imported only where mteb is."""

import csv
from pathlib import Path

import soundfile
from datasets import Audio, Dataset, DatasetDict
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.task_metadata import TaskMetadata

SHARED = Path(__file__).parents[3] / "shared/data"
COMMANDS, SPEAKERS = SHARED / "speech_commands_9", SHARED / "librispeech_mini"


def metadata(name: str, kind: str, category: str, score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="Recordings on this machine.",
        dataset={"path": "local", "revision": "1"},
        type=kind,
        category=category,
        modalities=["audio"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=score,
        reference=None,
        date=None,
        domains=["Spoken"],
        task_subtypes=[],
        license=None,
        annotations_creators="derived",
        dialect=[],
        sample_creation="found",
        bibtex_citation="",
    )


def read_rows(corpus: Path, table: str = "metadata.csv") -> list[dict[str, str]]:
    with open(corpus / table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def array_of(path: Path) -> dict:
    samples, rate = soundfile.read(path, dtype="float32")
    return {"array": samples, "sampling_rate": rate}


class Keywords(AbsTaskClassification):
    """Three words, few clips: files in a column that `datasets` itself would decode by torchcodec."""

    metadata = metadata("LocalKeywords", "AudioClassification", "a2c", "accuracy")
    input_column_name = "audio"
    n_experiments = 2

    def load_data(self, **options) -> None:
        words, rows, splits = ("down", "eight", "zero"), read_rows(COMMANDS), {}
        for split, most in (("train", 12), ("test", 10)):
            of_words = [[row for row in rows if (row["keyword"], row["split"]) == (word, split)][:most] for word in words]
            paths = [str(COMMANDS / row["file_name"]) for own in of_words for row in own]
            labels = [label for label, own in enumerate(of_words) for _ in own]
            splits[split] = Dataset.from_dict({"audio": paths, "label": labels}).cast_column("audio", Audio())
        self.dataset, self.data_loaded = DatasetDict(splits), True


class SameSpeaker(AbsTaskPairClassification):
    """Some trials of the shared LibriSpeech selection: arrays with their rate."""

    metadata = metadata("LocalSameSpeaker", "AudioPairClassification", "a2a", "max_ap")
    input1_column_name, input2_column_name, label_column_name = "first", "second", "labels"

    def load_data(self, **options) -> None:
        rows = read_rows(SPEAKERS, "sv_trials.csv")
        trials = [row for label in "01" for row in [row for row in rows if row["label"] == label][:20]]
        columns = {"first": "file_a", "second": "file_b"}
        clips = {name: [array_of(SPEAKERS / row[column]) for row in trials] for name, column in columns.items()}
        labels = [int(row["label"]) for row in trials]
        self.dataset, self.data_loaded = DatasetDict({"test": Dataset.from_dict({**clips, "labels": labels})}), True
