"""The options of publishing. Nothing here loads PyTorch, so that `--help` is answered at once."""

from __future__ import annotations

from dataclasses import dataclass

from wavcse.settings.command import Program
from wavcse.settings.fields import NEEDED, CheckedFields, operand, option

PUSH_ABOUT = """\
Publish a run on the Hugging Face Hub.

Builds the repository beside the run (weights, code, card with the run's figures), loads it in a fresh process without this
package, compares its embeddings with the run's, and uploads it in one commit. The token is that of `hf auth login` or of the
variable HF_TOKEN.
"""
CARD_ABOUT = """\
Print the card of a run: what its results add to the card that follows from the configuration (`hub_repository_wavcse.py`).
"""


@dataclass
class CardArguments(CheckedFields):
    """Whose card, and where its figures are."""

    run: str = operand("Run folder (its hub/ is the model), or folder of a saved model.")
    repo_id: str | None = option(None, "Hub id that the examples name.", value="ORG/NAME")
    results: str | None = option(None, "Folder that `wavcse eval` wrote.", "the run folder", value="DIR")


@dataclass
class PushArguments(CheckedFields):
    """What is published, where, and what is said of it."""

    run: str = operand("Run folder (its hub/ is the model), or folder of a saved model.", group="what is published")
    results: str | None = option(None, "Folder that `wavcse eval` wrote.", "the run folder", value="DIR")
    repo_id: str = option(NEEDED, "Where on the Hub; made if it does not exist.", value="ORG/NAME", group="where")
    space: str | None = option(
        None, "Also make a Space with the page of `wavcse app` for the pushed model; needs wavcse[app].", value="ORG/NAME"
    )
    private: bool = option(False, "Make a new repository private.")
    revision: str | None = option(None, "Commit to this branch; made if it does not exist.", value="BRANCH")
    message: str | None = option(None, "Of the commit.")
    dry_run: bool = option(False, "Build and check, show the files, send nothing.")
    out: str | None = option(None, "Keep the built repository here, to look at it.", value="DIR")
    license: str | None = option(
        None, "Of the weights, as the Hub names it.", "the code's, apache-2.0", value="ID", group="what the card says"
    )
    license_name: str | None = option(None, "With --license other: a name for it, in lower case without blanks.", value="ID")
    license_link: str | None = option(None, "With --license other: where it can be read, or a file's name.", value="URL")
    language: list[str] | None = option(None, "ISO 639 codes.", "those of the training manifests", value="CODE")
    base_model: str | None = option(None, "Hub id of the upstream.", "as in the run's configuration", value="ID")


PUSH = Program("wavcse push", PushArguments, PUSH_ABOUT, "wavcse push runs/mine --repo_id org/wavcse --dry_run")
CARD = Program(
    "wavcse card",
    CardArguments,
    CARD_ABOUT,
    "python -m wavcse.hub.card runs/mine --repo_id org/wavcse",
    usage="python -m wavcse.hub.card",
)
