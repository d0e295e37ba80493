"""The command lines of publishing. Nothing here loads PyTorch, so that `--help` is answered at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

PUSH = """\
Publish a run on the Hugging Face Hub.

    wavcse push runs/mine --repo_id org/wavcse --dry_run

builds the repository beside the run (weights, code, card with the run's figures), loads it in a fresh process without this
package, compares its embeddings with the run's, and uploads it in one commit. The token is that of `hf auth login` or of the
variable HF_TOKEN.
"""
CARD = """\
The card of a run: what its results add to the card that follows from the configuration (`hub_repository_wavcse.py`).

    python -m wavcse.hub.card runs/mine --repo_id org/wavcse

prints it.
"""


def parse_push(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `wavcse push`."""
    parser = _parser("wavcse push", PUSH)
    parser.add_argument("run", help="run folder (its hub/ is the model), or folder of a saved model")
    parser.add_argument("--repo_id", required=True, help="organisation/name on the Hub; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch; made if it does not exist")
    parser.add_argument("--dry_run", action="store_true", help="build and check, show the files, send nothing")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--results", metavar="FOLDER", help="folder that `wavcse eval` wrote (default: the run folder)")
    parser.add_argument("--out", metavar="FOLDER", help="keep the built repository here, to look at it")
    parser.add_argument("--license", help="of the weights, as the Hub names it (default: the code's, apache-2.0)")
    parser.add_argument(
        "--license_name", metavar="ID", help="with --license other: a name for it, in lower case without blanks"
    )
    parser.add_argument("--license_link", metavar="URL", help="with --license other: where it can be read, or a file's name")
    parser.add_argument("--language", nargs="+", help="ISO 639 codes (default: those of the training manifests)")
    parser.add_argument("--base_model", metavar="ID", help="Hub id of the upstream (default: as in the run's configuration)")
    return parser.parse_args(argv)


def parse_card(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `python -m wavcse.hub.card`."""
    parser = _parser("python -m wavcse.hub.card", CARD)
    parser.add_argument("run", help="run folder, or folder of a saved model")
    parser.add_argument("--repo_id", help="Hub id that the examples name")
    parser.add_argument("--results", help="folder that `wavcse eval` wrote (default: the run folder)")
    return parser.parse_args(argv)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=prog, description=description, formatter_class=argparse.RawTextHelpFormatter)
