"""Settings of `wavcse finetune`: a YAML recipe plus command-line overrides, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from wavcse.eval.arguments import TaskRequest, task_request
from wavcse.settings.command import Program
from wavcse.settings.fields import check_file_name, option
from wavcse.steps.arguments import StepArguments

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
