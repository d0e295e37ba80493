"""Fine-tune a wavCSE model on one label per clip with transformers' Trainer; options as of transformers' example of this name.

    python examples/run_audio_classification.py --model_name_or_path . --dataset_name ../shared/data/speech_commands_9 \
        --label_column_name keyword --output_dir runs/words --do_train --do_eval --learning_rate 1e-3 --num_train_epochs 5

Data, read by this package (no `datasets`, no torchcodec): `--dataset_name`, a folder with a metadata.csv that has a column of
splits, or with clips in SPLIT/LABEL/ (the `audiofolder` layout); or `--train_file` and `--eval_file`, a table each.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from wavcse.data.audio_folder import read_audio_folder
from wavcse.data.manifest import Clip, Manifest


@dataclass
class DataTrainingArguments:
    """Where clips and labels come from."""

    dataset_name: str | None = field(default=None, metadata={"help": "Folder with metadata.csv or SPLIT/LABEL/ folders."})
    train_file: str | None = field(default=None, metadata={"help": "Table (CSV, Parquet) of the training clips."})
    eval_file: str | None = field(default=None, metadata={"help": "Table of the clips to evaluate on."})
    train_split_name: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split_name: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    split_column_name: str = field(default="split", metadata={"help": "Column of the splits in metadata.csv."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the labels."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many clips."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many clips."})
    max_length_seconds: float = field(default=20, metadata={"help": "Longer training clips are cut at random."})


@dataclass
class ModelArguments:
    """Which model is trained, and what of it."""

    model_name_or_path: str = field(default=".", metadata={"help": "Folder or Hub id of a wavCSE model."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    freeze_feature_encoder: bool = field(default=True, metadata={"help": "Keep the stem of the upstream fixed."})
    freeze_upstream: bool = field(default=True, metadata={"help": "Keep the whole upstream fixed."})
    freeze_base_model: bool = field(default=False, metadata={"help": "Train the head only."})
    attention_mask: bool = field(default=True, metadata={"help": "Have the feature extractor give a mask."})
    token: str | None = field(default=None, metadata={"help": "Of the Hub, for private models."})
    trust_remote_code: bool = field(default=True, metadata={"help": "Run the code in the model's repository."})
    ignore_mismatched_sizes: bool = field(default=False, metadata={"help": "Give a head with other labels a new start."})


class Clips:
    """A data set of `input_values` and `labels`; a clip is read when it is asked for."""

    def __init__(self, clips: list, labels: list[str], label2id: dict[str, int], feature_extractor, max_s: float | None):
        self.clips, self.labels, self.feature_extractor = clips, [label2id[label] for label in labels], feature_extractor
        self.max_samples = None if max_s is None else int(max_s * feature_extractor.sampling_rate)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        rate = self.feature_extractor.sampling_rate
        waveform = self.clips[index].load(rate, self.feature_extractor.max_duration_s)
        if self.max_samples is not None and len(waveform) > self.max_samples:
            start = np.random.randint(len(waveform) - self.max_samples)
            waveform = waveform[start : start + self.max_samples]
        inputs = self.feature_extractor(waveform, sampling_rate=rate)
        return {"input_values": inputs["input_values"][0], "labels": self.labels[index]}


def read_clips(data: DataTrainingArguments, is_train: bool) -> tuple[list, list[str]]:
    """Clips and labels of the training or the evaluation split."""
    table = data.train_file if is_train else data.eval_file
    split = data.train_split_name if is_train else data.eval_split_name
    if table is None and data.dataset_name is None:
        raise SystemExit("Give --dataset_name, or --train_file and --eval_file.")
    folder = Path(data.dataset_name or ".")
    if table is None and not (folder / "metadata.csv").is_file():
        return read_split_folder(folder / split)
    manifest = Manifest(table or folder / "metadata.csv")
    labels = manifest.column(data.label_column_name)
    used = labels != ""
    if table is None:
        used &= manifest.split(data.split_column_name) == split
    rows = np.flatnonzero(used)
    if not len(rows):
        raise SystemExit(f"{manifest.path}: no clip of the split {split!r} has a {data.label_column_name!r}.")
    return [manifest.clips[row] for row in rows], list(labels[rows])


def read_split_folder(folder: Path) -> tuple[list, list[str]]:
    """Clips in LABEL/ below a folder."""
    files = {name: path for name, path in read_audio_folder(folder).files.items() if "/" in name}
    if not files:
        raise SystemExit(f"{folder}: has no audio files in folders that are called like their label.")
    return [Clip(name, path) for name, path in files.items()], [name.partition("/")[0] for name in files]


def sample(clips: list, labels: list[str], count: int | None, seed: int) -> tuple[list, list[str]]:
    """So many of the clips, drawn at random; all of them without a count."""
    if count is None or count >= len(clips):
        return clips, labels
    rows = np.random.default_rng(seed).permutation(len(clips))[:count]
    return [clips[row] for row in rows], [labels[row] for row in rows]


def accuracy(evaluation) -> dict[str, float]:
    """Share of the clips whose most likely label is right."""
    return {"accuracy": float((evaluation.predictions.argmax(axis=1) == evaluation.label_ids).mean())}


def main() -> None:
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments), description=__doc__)
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, data_args, training_args = parser.parse_json_file(sys.argv[1])
    else:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    seed = training_args.seed

    train = read_clips(data_args, is_train=True)
    names = sorted(set(train[1]))
    label2id = {name: index for index, name in enumerate(names)}

    where, hub = model_args.model_name_or_path, {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision}
    hub |= {"token": model_args.token, "trust_remote_code": model_args.trust_remote_code}
    feature_extractor = AutoFeatureExtractor.from_pretrained(where, return_attention_mask=model_args.attention_mask, **hub)
    id2label = dict(enumerate(names))
    config = AutoConfig.from_pretrained(
        where, num_labels=len(names), label2id=label2id, id2label=id2label, freeze_upstream=model_args.freeze_upstream, **hub
    )
    model = AutoModelForAudioClassification.from_pretrained(
        where, config=config, ignore_mismatched_sizes=model_args.ignore_mismatched_sizes, **hub
    )
    if model_args.freeze_feature_encoder:
        model.freeze_feature_encoder()
    if model_args.freeze_base_model:
        model.freeze_base_model()

    data = {}
    if training_args.do_train:
        clips = sample(*train, data_args.max_train_samples, seed)
        data["train_dataset"] = Clips(*clips, label2id, feature_extractor, data_args.max_length_seconds)
    if training_args.do_eval:
        clips = sample(*read_clips(data_args, is_train=False), data_args.max_eval_samples, seed)
        unknown = sorted(set(clips[1]) - set(names))
        if unknown:
            raise SystemExit(f"The label {unknown[0]!r} occurs in evaluation but not in training.")
        data["eval_dataset"] = Clips(*clips, label2id, feature_extractor, None)
    trainer = Trainer(model, training_args, compute_metrics=accuracy, processing_class=feature_extractor, **data)

    if training_args.do_train:
        found = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", found.metrics)
        trainer.save_metrics("train", found.metrics)
        trainer.save_state()
    if training_args.do_eval:
        figures = trainer.evaluate()
        trainer.log_metrics("eval", figures)
        trainer.save_metrics("eval", figures)
    if training_args.push_to_hub:
        trainer.push_to_hub(tasks="audio-classification", finetuned_from=where)


if __name__ == "__main__":
    main()
