"""Settings of `wavcse finetune`: a YAML recipe plus command-line overrides, checked before anything is computed.

A recipe with `upstreams` compares upstreams on one classification task (LASR); one with `tasks` trains a network on several.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wavcse.eval.arguments import TaskRequest, task_request
from wavcse.finetuning.text import TextSettings
from wavcse.settings.command import Program, RecipePrograms
from wavcse.settings.fields import CheckedFields, check_choice, check_file_name, option, section_from
from wavcse.settings.recipes import checked_fields
from wavcse.settings.studies import StudyArguments, StudyFile
from wavcse.steps.arguments import DECAYS, StepArguments, UpdateArguments
from wavcse.steps.freezing import Freeze

ABOUT = """\
How good is an upstream once it is trained on a task? Each encoder is trained as a whole, under the mean over its frames
and one linear layer (LASR, Table 1); validation chooses the step, and the test split is predicted once. Leaves result
files like `wavcse eval`. A killed run goes on where it was: give the same command again.
"""
DEFAULT_TASK = "language"


@dataclass
class FinetuneArguments(StepArguments):
    """Fine-tuning as in LASR (Vashishth et al. 2023), section 4: cross-entropy, everything is trained.

    The papers give the rate and the schedule of the optimiser; steps, crops and batches are scaled to small encoders.
    """

    output_dir: str = option(
        "runs/finetune", "Folder of the results, and of the runs below runs/.", flag="out", group="the run"
    )
    upstreams: dict = option(
        dict,
        "Name in tables -> WavLM, wav2vec2, HuBERT or wavCSE model, folder or Hub id (YAML or JSON).",
        group="what is trained, on what",
    )
    task: dict = option(
        lambda: {"task": DEFAULT_TASK},
        "As an entry of `tasks:` of wavcse eval: task, manifest, disjoint_by, ... (YAML or JSON).",
    )
    groups: dict = option(
        dict,
        "Name -> classes whose test clips get a row of their own. Without it, O and NO: the labels of the data "
        "that the upstreams were pre-trained on, and the others, where the upstreams' runs tell (YAML or JSON).",
    )
    mask_frames: int = option(0, "Frames (20 ms) of a span that training masks; 0 = no masks.", at_least=0)
    labels_per_batch: int = option(
        0, "Labels whose clips share the batch evenly; 0 = clips by their length alone.", at_least=0
    )
    max_steps: int = option(1000, "Updates.", above=0, group="steps")
    warmup_steps: int = option(100, "Steps of linear warm-up.", at_least=0)
    validate_every: int = option(50, "Steps between looks at the validation split.", above=0, group="steps")
    seeds: int = option(1, "Trainings per upstream, from `seed` on; figures are their mean.", above=0, group="the run")

    def named_upstreams(self) -> dict[str, str]:
        """Name -> folder or id; ValueError if there is none, or a name cannot name files."""
        if not self.upstreams:
            raise ValueError("upstreams is {}; name at least one: `upstreams: {name: FOLDER}`.")
        for name, folder in self.upstreams.items():
            check_file_name("a name in upstreams", name)
            if not isinstance(folder, str):
                raise ValueError(f"upstreams: {name} is {folder!r}; a folder or Hub id is needed.")
        return self.upstreams

    def task_request(self) -> TaskRequest:
        """The task and its manifests; ValueError if it is not a classification task, or a setting of it is wrong."""
        name = str(self.task.get("task", DEFAULT_TASK))
        request = task_request(name, self.task, where="task")
        if request.task.kind != "classification":
            raise ValueError(f"task {name!r}: is a {request.task.kind} task; fine-tuning has classes to learn.")
        return request


FINETUNE = Program(
    "wavcse finetune",
    FinetuneArguments,
    ABOUT,
    "wavcse finetune conf/finetune_language.yaml",
    has_recipe=True,
    continues=True,
)


# ---- several tasks at once ----

TASKS_ABOUT = """\
Train a whole upstream on several tasks at once: texts (CTC), speakers and other classes, numbers, from data that share clips
or do not (Vaessen and van Leeuwen 2023). Validation chooses the step, and the test split is predicted once. Leaves the
network as hub/, its encoder as upstream/, and for a text ctc/. A killed run goes on where it was: give the same command again.
"""
LOSSES = {"ctc": ("ctc",), "classes": ("cross_entropy", "aam_softmax"), "numbers": ("l1", "ccc")}  # of a kind, its own first
FIGURES = {"ctc": ("loss", "wer", "cer"), "classes": ("loss", "accuracy", "uar", "eer"), "numbers": ("loss", "mae", "ccc")}
TAPS = ("last", "weighted_sum", "ari", "weighted_blocks", "embedding")
POOLINGS = ("mean", "first", "mean_std", "ecapa")
FUSIONS = ("content", "fixed", "cross", "none")
NEWBOB = "newbob"
LOSS = "loss"  # of `choose`: the weighted sum of all tasks' losses
WHOLE = "whole"
COMBINATIONS, CLIPPINGS, CLIP_KINDS = ("sum", "mean"), ("each", "total"), ("norm", "value")


@dataclass
class FusionSettings(CheckedFields):
    """How one task attends to frames by what others hear (`coattention_wavcse.py`)."""

    kind: str = option("content", "Of the attention; none: the mean of the frames.", choices=FUSIONS)
    tasks: list[str] | None = option(None, "Whose hidden layers it reads.", "all others")
    hidden: int = option(128, "Size of its layers.", above=0)
    dropout: float = option(0.1, "Before its layers.", at_least=0, below=1)
    frames: int | None = option(None, "Of fixed: frames that have a weight.", "149", above=0)
    heads: int | None = option(None, "Of cross.", "4", above=0)

    def __post_init__(self):
        super().__post_init__()
        for name, kind in (("frames", "fixed"), ("heads", "cross")):
            if getattr(self, name) is not None and self.kind != kind:
                raise ValueError(f"{name} is given, but it belongs to kind {kind}, and kind is {self.kind}.")

    def readout(self, others: list[str]) -> dict[str, Any]:
        """What `FinetunedWavCSEConfig` says of it."""
        own = {"frames": self.frames, "heads": self.heads}
        known = {"kind": self.kind, "tasks": others if self.tasks is None else self.tasks, "hidden": self.hidden}
        known["dropout"] = self.dropout
        return {**known, **{name: value for name, value in own.items() if value is not None}}


@dataclass
class MixSettings(CheckedFields):
    """Of the taps that mix blocks, ari and weighted_blocks."""

    raw: bool = option(False, "Use the weights without a softmax.")
    per_task: bool = option(False, "Each task has weights of its own; else all share them.")


@dataclass
class NewBobSettings(CheckedFields):
    """When `decay: newbob` lowers both learning rates."""

    factor: float = option(0.9, "Of both rates at once.", above=0, below=1)
    threshold: float = option(0.0025, "Least relative fall of the validation error that leaves them.", at_least=0)


@dataclass
class TaskSettings(CheckedFields):
    """A task of a recipe: what is read off which layer, and from which clips it is learnt.

    `text_settings` is its section `text`, `fusion_settings` its section `fusion`, `None` without one.
    """

    kind: str = option("classes", "What is learnt.", choices=tuple(LOSSES))
    manifest: list[str] = option(list, "Manifest, or several.")
    label_column: str = option("", "Its column of transcripts, classes or numbers.")
    split_column: list[str] = option(lambda: ["split"], "Its column of splits; of several the first that a manifest has.")
    disjoint_by: str | None = option(None, "Column whose values (speakers) may not cross splits.")
    tap: int | str = option("last", "Layer that is read: 0 = input of the first block.", choices=TAPS, at_least=0)
    pooling: str = option("mean", "Of its frames to the vector of a clip.", choices=POOLINGS)
    ecapa: dict = option(dict, "Sizes of that pooling: channels, aggregated_channels, embedding_size.")
    hidden: int = option(0, "Size of a layer with ReLU before its head; of a text, on every frame. 0 = none.", at_least=0)
    dropout: float | None = option(None, "Of that layer.", "0.1", at_least=0, below=1)
    fusion: dict = option(dict, "In place of pooling, frames weighted by what other tasks hear: kind, tasks, hidden, ...")
    loss: str | None = option(None, "Of the task.", "the kind's own", choices=sum(LOSSES.values(), ()))
    scale: float | None = option(None, "Of aam_softmax.", "30", above=0)
    margin: float | None = option(None, "Of aam_softmax, in radians.", "0.2", at_least=0)
    weight: float = option(1.0, "Of its loss in the sum.", above=0)
    learning_rate: float | None = option(None, "Of its pooling, hidden layer and head.", "the recipe's", above=0)
    trials: str | None = option(None, "Validation's pairs of clips, as `wavcse trials` writes them.", "all pairs of clips")
    text: dict = option(dict, "What becomes of a transcript before it is learnt: case, characters, replace.")

    def __post_init__(self):
        super().__post_init__()
        if missing := [name for name in ("manifest", "label_column") if not getattr(self, name)]:
            raise ValueError(f"{' and '.join(missing)} missing.")
        self.loss = LOSSES[self.kind][0] if self.loss is None else self.loss
        check_choice("loss", self.loss, LOSSES[self.kind])
        for name, kind in (("trials", "classes"), ("text", "ctc")):
            if getattr(self, name) and self.kind != kind:
                raise ValueError(f"{name} is given, but it belongs to kind {kind}, and kind is {self.kind}.")
        self.text_settings = section_from(TextSettings, "text", self.text)
        if self.loss != "aam_softmax" and (self.scale is not None or self.margin is not None):
            raise ValueError(f"scale and margin belong to loss aam_softmax, and loss is {self.loss}.")
        if self.ecapa and self.pooling != "ecapa":
            raise ValueError(f"ecapa is given, but pooling is {self.pooling}.")
        if self.tap == "embedding" and (self.kind == "ctc" or self.pooling != "mean"):
            raise ValueError("tap is embedding, one vector per clip: it serves classes and numbers, and has no pooling.")
        if self.dropout is not None and not self.hidden:
            raise ValueError("dropout is given, but it is of the hidden layer, and hidden is 0.")
        if self.fusion and (self.kind == "ctc" or self.hidden or self.pooling != "mean"):
            raise ValueError("fusion is for classes and numbers, in place of pooling and of hidden: leave those out.")
        self.fusion_settings = section_from(FusionSettings, "fusion", self.fusion) if self.fusion else None

    @property
    def has_open_labels(self) -> bool:
        """Whether the labels themselves may not cross splits, so that validation has none that training knows."""
        return self.kind == "classes" and self.disjoint_by == self.label_column

    def readout(self) -> dict[str, Any]:
        """What `FinetunedWavCSEConfig` says of it before its data are known."""
        optional = {"scale": self.scale, "margin": self.margin, "ecapa": self.ecapa or None, "dropout": self.dropout}
        optional |= {"hidden": self.hidden or None}
        given = {name: value for name, value in optional.items() if value is not None}
        return {"kind": self.kind, "tap": self.tap, "pooling": self.pooling, "loss": self.loss, **given}


@dataclass
class StreamSettings(CheckedFields):
    """Clips that go through the network together; every step has a batch of each stream."""

    tasks: list[str] = option(list, "Tasks that are learnt from it.", "of a single stream all")
    batch_seconds: float = option(200.0, "Audio of a batch, all processes together.", above=0)
    batch_clips: int = option(0, "Whole clips of a batch, in place of batch_seconds.", at_least=0)
    crop: float | str = option(WHOLE, "Longest part of a clip in seconds, or whole clips.", choices=(WHOLE,), above=0)
    length_step_s: float = option(0.5, "Crops are multiples of this, so that equal lengths meet.", above=0)
    labels_per_batch: int = option(0, "Classes that share a batch of crops evenly; 0 = clips by their length.", at_least=0)
    label_exponent: float = option(0.5, "A class is drawn with probability hours ** this.", at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if self.crop == WHOLE:
            return
        if self.batch_clips:
            raise ValueError(f"batch_clips counts whole clips, and crop is {self.crop}.")
        if not self.length_step_s <= self.crop <= self.batch_seconds:
            raise ValueError(
                f"crop is {self.crop}; it must lie between length_step_s ({self.length_step_s}) and batch_seconds "
                f"({self.batch_seconds})."
            )


@dataclass
class TestSettings(CheckedFields):
    """A further test set of a task, judged once beside the task's own test split, as HUB5 is of a training on LibriSpeech."""

    __test__ = False  # for pytest, which collects classes of such names

    of: str = option("", "Task whose readout answers.")
    manifest: list[str] = option(list, "Manifest, or several.")
    label_column: str | None = option(None, "Its column of transcripts, classes or numbers.", "the task's")
    split_column: list[str] | None = option(None, "Its column of splits, of which `test` is read.", "the task's")
    trials: str | None = option(None, "Pairs of clips, as `wavcse trials` writes them.", "all pairs of clips")
    first_s: float | None = option(None, "Seconds at the beginning that are heard.", "whole clips", above=0)

    def __post_init__(self):
        super().__post_init__()
        if missing := [name for name in ("of", "manifest") if not getattr(self, name)]:
            raise ValueError(f"{' and '.join(missing)} missing.")

    def as_task(self, task: TaskSettings) -> TaskSettings:
        """The settings of `task`, with the clips and labels of this set."""
        own = {name: value for name in ("label_column", "split_column") if (value := getattr(self, name)) is not None}
        if self.label_column is not None and task.has_open_labels:
            own["disjoint_by"] = self.label_column  # speakers by another name are still those that may not be known
        return replace(task, manifest=self.manifest, trials=self.trials, **own)


@dataclass
class FoldSettings(CheckedFields):
    """Folds that divide the clips of all tasks: each tests one group, of whose speakers no one trains."""

    column: str = option("", "Manifest column whose values are left out in turn, such as session or speaker_id.")
    groups: int | None = option(None, "Put its values into so many groups.", "each value is one", at_least=2)
    disjoint_by: str = option("speaker_id", "Column of the speakers, of whom none that is tested may train any task.")
    validation_share: float = option(0.1, "Of the clips that are not tested; drawn by hash.", above=0, below=1)
    labelled: str | None = option(None, "Only clips with a value in this column take part.", "all")

    def __post_init__(self):
        super().__post_init__()
        if missing := [name for name in ("column", "disjoint_by") if not getattr(self, name)]:
            raise ValueError(f"{' and '.join(missing)} missing.")


@dataclass
class AugmentSettings(CheckedFields):
    """How training changes its clips; validation and test hear them as they are."""

    speeds: list[int] = option(
        list,
        "Percent of the speed, of which each batch draws one; 80 makes a clip 1.25 times as long.",
        at_least=25,
        at_most=400,
    )


@dataclass
class GradientSettings(CheckedFields):
    """How the gradients of the streams become one, Eq. 2 of Vaessen and van Leeuwen 2023 and their code's variants."""

    combine: str = option("sum", "Of what several streams say to one parameter.", choices=COMBINATIONS)
    clip: str = option("total", "Clip each stream's gradient, or their total.", choices=CLIPPINGS)
    kind: str = option("norm", "Clip by the norm of all, or every number by itself.", choices=CLIP_KINDS)
    max: float = option(1.0, "Largest norm, or number.", above=0)


STAGE = "stage{}"  # folder of a stage's run, in that of its recipe
# Fields that came later, with the values that leave everything as it was.
LATER = {
    **{"learn": [], "ari": {}, "num_epochs": 0, "encoder_learning_rate": None, "newbob": {}, "stages": []},
    **{"folds": {}, "fold": None, "augment": {}, "tests": {}},
}


def without_later(known: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe without those that came later and leave everything as it was."""
    return {name: value for name, value in known.items() if name not in LATER or value != LATER[name]}


@dataclass
class MultiTaskArguments(UpdateArguments):
    """Speech and speaker recognition in one encoder (Vaessen and van Leeuwen 2023), and any other tasks; theirs by default."""

    output_dir: str = option(
        "runs/finetune", "Run folder: config, log, checkpoints, results, upstream, ctc, hub.", flag="out", group="the run"
    )
    init_from: str | dict | None = option(
        None,
        "Start from this WavLM, wav2vec2, HuBERT, Whisper or wavCSE model, folder or Hub id; without it from nothing. "
        "In a recipe {stage: N}: from what stage N has trained.",
        value="DIR_OR_HUB_ID",
        group="what is trained, on what",
    )
    tasks: dict = option(dict, "Name -> kind, manifest, label_column, tap, pooling, loss, ... (YAML or JSON).")
    learn: list[str] = option(
        list, "Tasks that are learnt and judged; others are parts of the network, as init_from has them.", "all"
    )
    ari: dict = option(dict, "Of taps that mix blocks: raw, per_task (YAML or JSON).")
    streams: dict = option(
        dict,
        "Name -> tasks, batch_seconds, crop (YAML or JSON).",
        "one of whole clips for each task",
        group="what is trained, on what",
    )
    folds: dict = option(
        dict, "column, groups, ...: leave one group of the clips out in turn (YAML or JSON).", "the split columns"
    )
    fold: int | None = option(None, "Which of the folds is tested, from 1.", at_least=1)
    augment: dict = option(dict, "speeds: percent of the speed of training clips (YAML or JSON).")
    tests: dict = option(dict, "Name -> of, manifest, trials, first_s: further test sets of a task (YAML or JSON).", "none")
    embedding_of: str | None = option(
        None, "Task whose vector is the embedding.", "one with a fusion, or by name the first that is no text"
    )
    gradients: dict = option(dict, "combine, clip, kind, max (YAML or JSON).")
    freeze: dict = option(dict, "stem, encoder_until, blocks, ari, auxiliary (YAML or JSON).")
    mask_share: float = option(0.05, "Share of the frames that masks cover.", at_least=0, below=1, group="masks")
    mask_frames: int = option(10, "Frames (20 ms) of a span.", at_least=0)
    mask_least: int = option(2, "Spans in a clip at least.", at_least=0)
    max_clip_s: float = option(25.0, "Longer clips train and validate nothing where they are taken whole.", above=0)
    max_characters: int = option(300, "Nor do clips with a longer text.", above=0)

    max_steps: int = option(200_000, "Updates.", above=0, group="steps")
    num_epochs: int = option(0, "In place of max_steps, passes over the longest stream.", at_least=0)
    learning_rate: float = option(1e-4, "Peak of Adam's learning rate.", above=0)
    encoder_learning_rate: float | None = option(None, "Of the encoder.", "the same", above=0)
    decay: str = option("tri_stage", "Of the learning rates.", choices=(*DECAYS, NEWBOB))
    newbob: dict = option(dict, "Of decay newbob, by the error that chooses the step: factor, threshold (YAML or JSON).")
    adam_betas: list[float] = option(lambda: [0.9, 0.999], "Adam's beta1 and beta2.")
    weight_decay: float = option(0.0, "On matrices only.", at_least=0)
    validate_every: int = option(
        5000, "Steps between looks at the validation split; 0 = a pass over the longest stream.", at_least=0
    )
    patience: int = option(8, "Looks without a lower loss after which the run stops; 0 = never.", at_least=0)
    choose: dict = option(
        dict,
        "TASK.FIGURE -> weight: the step with the lowest sum is kept; loss: the losses by their weights (YAML or JSON).",
        "the sum of the losses",
    )
    stages: list[dict] = option(
        list,
        "Trainings one after another, each as fields on top of these; tasks name by name, null takes one out (YAML or JSON).",
        "one",
        group="stages",
    )

    def identity(self) -> dict[str, Any]:
        """As of `RunSettings`; fields that came later only where they are not as before: earlier runs do not name them."""
        return without_later(super().identity())

    @property
    def start(self) -> str | None:
        """The upstream, or the wavCSE model with it, that training starts from, folder or Hub id."""
        before = self.stage_before
        return self.init_from if before is None else str(before / "upstream")

    @property
    def stage_before(self) -> Path | None:
        """The run folder of the stage that this one starts from; `None` if it starts from no stage."""
        if not isinstance(self.init_from, dict):
            return None
        number = checked_fields("init_from", self.init_from, ["stage"]).get("stage")
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"init_from is {self.init_from}; {{stage: N}} with a whole number from 1 on is needed.")
        return Path(self.output_dir).parent / STAGE.format(number)

    def learnt_tasks(self) -> dict[str, TaskSettings]:
        """The tasks that are learnt, in the order of `task_settings`."""
        tasks = self.task_settings()
        for name in self.learn:
            check_choice("learn", name, tasks)
        return {name: task for name, task in tasks.items() if not self.learn or name in self.learn}

    def task_settings(self) -> dict[str, TaskSettings]:
        """The tasks by name, in whatever order the recipe has them; ValueError names the field of a task that is wrong."""
        if not self.tasks:
            raise ValueError("tasks is {}; name at least one: `tasks: {speech: {kind: ctc, manifest: PATH, ...}}`.")
        found = {}
        for name, section in sorted(self.tasks.items(), key=lambda pair: str(pair[0])):
            check_file_name("a name in tasks", name)
            found[name] = section_from(TaskSettings, f"tasks.{name}", section)
        if self.embedding_of is not None:
            check_choice("embedding_of", self.embedding_of, found)
        for name, task in found.items():
            for other in (task.fusion_settings.tasks or []) if task.fusion_settings else []:
                check_choice(f"tasks.{name}: fusion: a task", other, [one for one in found if one != name])
        return found

    def readout_of(self, name: str, known: Mapping[str, Any]) -> dict[str, Any]:
        """A readout of `FinetunedWavCSEConfig`: what is `known` of a task, and its fusion with the tasks that it reads."""
        tasks = self.task_settings()
        fusion = tasks[name].fusion_settings
        others = [other for other, one in tasks.items() if other != name and one.hidden]
        return {**known, **({} if fusion is None else {"fusion": fusion.readout(others)})}

    def stream_settings(self) -> dict[str, StreamSettings]:
        """The streams; ValueError if a task is in none or in two, or a text would be cut."""
        tasks = self.learnt_tasks()
        if not self.streams:
            return {name: StreamSettings(tasks=[name]) for name in tasks}
        streams, seen = {}, set()
        for name, section in sorted(self.streams.items(), key=lambda pair: str(pair[0])):
            stream = section_from(StreamSettings, f"streams.{name}", section)
            if not stream.tasks and len(self.streams) == 1:
                stream.tasks = list(tasks)
            for task in stream.tasks:
                check_choice(f"streams.{name}: a task", task, tasks)
                if task in seen:
                    raise ValueError(f"streams.{name}: the task {task!r} is named twice; one stream has it.")
                if tasks[task].kind == "ctc" and stream.crop != WHOLE:
                    raise ValueError(f"streams.{name}: crop is {stream.crop}, but the text of {task!r} is of whole clips.")
                seen.add(task)
            streams[str(name)] = stream
        if missing := [task for task in tasks if task not in seen]:
            raise ValueError(f"streams: the tasks {missing} are in none.")
        return streams

    def test_settings(self) -> dict[str, TestSettings]:
        """The further test sets; ValueError if one has the name of a task, or belongs to none."""
        tasks, found = self.task_settings(), {}
        for name, section in sorted(self.tests.items(), key=lambda pair: str(pair[0])):
            check_file_name("a name in tests", name)
            if name in tasks:
                raise ValueError(f"tests.{name}: that is the name of a task; its own test split is judged anyway.")
            found[name] = section_from(TestSettings, f"tests.{name}", section)
            check_choice(f"tests.{name}.of", found[name].of, tasks)
            try:
                found[name].as_task(tasks[found[name].of])
            except ValueError as error:
                raise ValueError(f"tests.{name}: {error}") from error
        return found

    def check_sections(self) -> None:
        """ValueError names the first section that is wrong."""
        for section in (
            self.task_settings,
            self.stream_settings,
            self.test_settings,
            self.gradient_settings,
            self.freeze_settings,
            self.mix_settings,
            self.newbob_settings,
            self.fold_settings,
            self.augment_settings,
            self.chosen_by,
        ):
            section()
        if self.start is None and self.learn:
            raise ValueError("learn is given without init_from: what is not learnt has to come from somewhere.")
        if self.freeze_settings().auxiliary and not self.learn:
            raise ValueError("freeze: auxiliary is for tasks that are not learnt, and learn names none that are.")
        if self.newbob and self.decay != NEWBOB:
            raise ValueError(f"newbob is given, but decay is {self.decay}.")

    def gradient_settings(self) -> GradientSettings:
        """The section `gradients`."""
        return section_from(GradientSettings, "gradients", self.gradients)

    def mix_settings(self) -> MixSettings:
        """The section `ari`."""
        return section_from(MixSettings, "ari", self.ari)

    def newbob_settings(self) -> NewBobSettings:
        """The section `newbob`."""
        return section_from(NewBobSettings, "newbob", self.newbob)

    def freeze_settings(self) -> Freeze:
        """The section `freeze`."""
        return section_from(Freeze, "freeze", self.freeze)

    def fold_settings(self) -> FoldSettings | None:
        """The section `folds`; `None` where the split columns of the manifests divide the clips."""
        if not self.folds and self.fold is not None:
            raise ValueError(f"fold is {self.fold}, but there are no folds: `folds: {{column: speaker_id}}`.")
        return section_from(FoldSettings, "folds", self.folds) if self.folds else None

    def augment_settings(self) -> AugmentSettings:
        """The section `augment`."""
        return section_from(AugmentSettings, "augment", self.augment)

    def chosen_by(self) -> dict[str, float]:
        """`choose`: TASK.FIGURE -> weight; ValueError names one that there is not."""
        tasks = self.learnt_tasks()
        known = [LOSS, *(f"{name}.{figure}" for name, task in tasks.items() for figure in FIGURES[task.kind])]
        for name, weight in checked_fields("choose", self.choose, known).items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
                raise ValueError(f"choose: {name} is {weight!r}; a weight above 0 is needed.")
        return {name: float(weight) for name, weight in self.choose.items()}


FINETUNE_TASKS = Program(
    "finetune_accelerate.py",
    MultiTaskArguments,
    TASKS_ABOUT,
    "accelerate launch finetune_accelerate.py conf/mtl_synthetic.yaml --out runs/mine",
    has_recipe=True,
    continues=True,
    usage="accelerate launch finetune_accelerate.py",
)


def _is_of_tasks(recipe: Collection[str], options: Collection[str]) -> bool:
    return not {"upstreams", "task"} & {*recipe, *options} and bool({"tasks", "init_from", "streams"} & {*recipe, *options})


def _is_study(recipe: Collection[str], options: Collection[str]) -> bool:
    return "variants" in recipe


# ---- studies ----

STUDY_ABOUT = """\
Train variants of a recipe of finetune_accelerate.py with several seeds and learning rates, and set their test figures side by
side, beside published ones. Leaves study.json, study.md, study.html and pictures. A killed study goes on where it was.
"""


@dataclass
class ProbeSettings(CheckedFields):
    """A frozen encoder that `wavcse eval` has tested on the folds of a study; a line of its tables."""

    task: str = option("", "Of the study, that the probe answers.")
    folder: str = option("", "Of the evaluation.")
    rows: list[str] = option(list, "Of its table, one per fold, in their order.")
    encoder: str = option("", "As that table calls it.")

    def __post_init__(self):
        super().__post_init__()
        if missing := [name for name in ("task", "folder", "rows", "encoder") if not getattr(self, name)]:
            raise ValueError(f"{', '.join(missing)} missing.")


@dataclass
class TaskStudyRecipe(StudyFile):
    """A study's file; `finetuning/study.py` checks what the fields hold."""

    variants: dict = option(
        dict, "Name -> fields on top; `tasks`, `tests` and `encoder` name by name, what is null is left out."
    )
    seeds: int = option(1, "Trainings per variant and learning rate.", above=0)
    learning_rates: list[float] = option(list, "Of which validation's sum of `choose` takes one per variant.", above=0)
    published: dict = option(dict, "Variant -> TASK.FIGURE -> what a paper says, in percent.")
    source: str = option("", "Where the published figures are from.")
    columns: list[str] = option(list, "TASK.FIGURE or TEST.FIGURE of the table.", "all")
    layers: dict = option(
        dict, "Of `python -m wavcse.eval.layers`: manifest, trials, ...; draws the EER of every layer, before and after."
    )
    runs_dir: str = option("", "Folder of the runs, where several studies share them.", "that of the study")
    upstreams: dict = option(dict, "Name -> init_from, from each of which every variant is trained, as NAME.VARIANT.", "none")
    tables: dict = option(dict, "Title -> variants, columns: tables of some of them.", "one of all")
    probes: dict = option(dict, "Name -> task, folder, rows, encoder: frozen encoders that are tested on the same folds.")
    against: dict = option(dict, "Variant -> variants or probes that it is compared with over the folds.")
    differences: list[str] = option(list, "In what the protocol differs from that of the published figures.")
    pictures_of: list[str] = option(list, "Variants whose weights of blocks and frames are drawn.", "the first that has both")


@dataclass
class TaskStudyArguments(StudyArguments):
    """As `StudyArguments`; a study can also be looked at before it is trained."""

    dry_run: bool = option(False, "List runs, updates and sizes, and train nothing.")


TASK_STUDY = Program(
    "wavcse.finetuning.study",
    TaskStudyArguments,
    STUDY_ABOUT,
    "python -m wavcse.finetuning.study conf/mtl_synthetic.yaml",
    continues=True,
    usage="python -m wavcse.finetuning.study",
)

# ---- which of them ----

FINETUNING = RecipePrograms(FINETUNE, {TASK_STUDY: _is_study, FINETUNE_TASKS: _is_of_tasks})
