"""The options of `wavcse app`. Nothing here loads PyTorch, so `--help` is answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wavcse.data.arguments import check_inputs
from wavcse.retrieval.arguments import DEVICE, TABLE, check_table
from wavcse.settings.command import Program
from wavcse.settings.fields import CheckedFields, option

APP_ABOUT = """\
Open a web page on which a model answers to recordings, made there or uploaded: labels with the scores of every head, how
similar two are, the nearest clips of a table, the vector as a file.

The page is served to this machine only, unless --host says otherwise. Recordings are deleted after about ten
minutes, and when the program ends.
Needs gradio: pip install "wavcse[app]". Exit codes: 0 ended, 2 refused.
"""


@dataclass(frozen=True)
class AppArguments(CheckedFields):
    """What answers, how much it takes, and where it is served."""

    model: str = option(
        ".", "Folder or Hub id of a wavCSE model; its Python files are run.", value="DIR_OR_HUB_ID", group="what answers"
    )
    table: str | None = option(None, f"To search: {TABLE}", value="TABLE")
    audio: str | None = option(None, "Folder that the table's paths start from, for playing.", value="DIR")
    calibration: str | None = option(None, "File of `wavcse calibrate`, by which similarities are read.", value="FILE.json")
    device: str = option("auto", DEVICE)
    max_seconds: float = option(60.0, "Longest recording that is taken.", above=0, group="limits")
    max_megabytes: float = option(20.0, "Largest file that is taken.", above=0)
    top: int = option(5, "How many clips of the table are shown.", at_least=1)
    host: str = option("127.0.0.1", "Address that is listened at; 0.0.0.0: every one.", value="ADDRESS", group="where")
    port: int = option(0, "Port there; 0: the first free one from 7860 on.", at_least=0, at_most=65535)

    def look(self) -> None:
        """ValueError for paths that are not there."""
        check_inputs([self.calibration] if self.calibration is not None else [], self.model)
        if self.table is not None:
            check_table(self.table)
        if self.audio is not None and not Path(self.audio).is_dir():
            raise ValueError(f"{self.audio}: there is no such folder; --audio is where the table's paths start from.")


APP = Program(
    "wavcse app",
    AppArguments,
    APP_ABOUT,
    "wavcse app --model . --table recordings.parquet --audio recordings",
    look=AppArguments.look,
)
