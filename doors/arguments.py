"""The options of `wavcse export`. Nothing here loads PyTorch, so `--help` is answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wavcse.data.arguments import check_inputs
from wavcse.settings.command import Program
from wavcse.settings.fields import CheckedFields, option

FORMATS = ("onnx", "torch-export")
EXPORT_PRECISIONS = ("float32", "int8")
EXPORT_ABOUT = """\
Write a model as one graph for onnxruntime or torch.export: a padded batch of waveforms and its mask in, embeddings out.

Batch and time are dynamic, and a clip has the same embedding alone and in a batch. The file goes into the model's folder
(onnx/model.onnx, as sentence-transformers expects it) and is run beside the model at once; error, cosine and speed are printed
and written into the model card. ONNX needs libraries: pip install "wavcse[onnx]".
Upstreams of some families, such as Whisper, are refused. Exit codes: 0 done, 2 refused.
"""


@dataclass(frozen=True)
class ExportArguments(CheckedFields):
    """What is exported, and how."""

    model: str = option(".", "Folder or Hub id of a wavCSE model.", value="DIR_OR_HUB_ID", group="input and output")
    out: str | None = option(None, "Folder of the files, if not the model's.", "the model's", value="DIR")
    format: str = option("onnx", "Of the file.", choices=FORMATS, group="what is exported")
    precision: str = option(
        "float32", "Of the matrix products; int8 quantises them while they run (ONNX only).", choices=EXPORT_PRECISIONS
    )
    frames: bool = option(False, "Also give the frames of the selected layers, and how many each clip has.")
    clips: list[str] = option(list, "Recordings that the file is tried with; noise if none are given.", value="FILE")

    def __post_init__(self):
        super().__post_init__()
        if self.precision == "int8" and self.format != "onnx":
            raise ValueError("precision int8 is for format onnx; torch-export has float32 alone.")

    def look(self) -> None:
        """ValueError for paths that are not there."""
        check_inputs([], self.model)
        if self.out is None and not Path(self.model).is_dir():
            raise ValueError(f"{self.model} is on the Hub; give the folder of the files with --out.")
        for clip in self.clips:
            if not Path(clip).is_file():
                raise ValueError(f"{clip}: there is no such audio file.")


EXPORT = Program(
    "wavcse export",
    ExportArguments,
    EXPORT_ABOUT,
    "wavcse export --model runs/quickstart/hub --format onnx",
    look=ExportArguments.look,
)
