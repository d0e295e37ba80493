"""Publish a run on the Hugging Face Hub: `wavcse push`, whose options and help are in `hub/arguments.py`."""

from __future__ import annotations

from wavcse.hub.arguments import PUSH, PushArguments

if __name__ == "__main__":
    PUSH.answer()  # before the imports below, which take seconds

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from wavcse.hub.build import build_repository
from wavcse.hub.header import check_header
from wavcse.hub.source import read_source
from wavcse.hub.space import gradio_version, space_files, upload_space
from wavcse.hub.verify import verify_repository
from wavcse.hub_repository_wavcse import left_out_files, repository_files, upload_repository
from wavcse.settings.command import DONE

# The HTTP library's base error: httpx or its successor, whichever huggingface_hub is built on.
HTTPError = HfHubHTTPError.__bases__[0]
UPLOAD_ERRORS = (OSError, ValueError, RuntimeError, HTTPError)


@dataclass(frozen=True)
class Push:
    """What a push did.

    Attributes:
        sizes: path in the repository -> bytes.
        difference: largest difference of the reloaded embedding from the run's, relative.
        card_generated: False if the run's README.md was written by hand and pushed as it is.
        left_out: files of the model's folder that stay here, and why.
        commit: `None` after a dry run.
        unchanged: the Hub held exactly these files already, so no commit was made.
        space: the commit to the Space; `None` if none was asked for, and after a dry run.
    """

    sizes: dict[str, int]
    difference: float
    card_generated: bool
    left_out: dict[str, str]
    commit: CommitInfo | None = None
    unchanged: bool = False
    space: CommitInfo | None = None


def push(
    run: str | Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    message: str | None = None,
    results: str | Path | None = None,
    out: str | Path | None = None,
    space: str | None = None,
    **given: Any,
) -> Push:
    """Build, check and upload; see the module.

    Args:
        run: run folder, or folder of a saved model; it is only read.
        repo_id: `organisation/name`.
        private: of a repository that is made; an existing one stays as it is.
        revision: branch; made if it does not exist.
        dry_run: do all but talk to the Hub.
        results: folder that `wavcse eval` wrote, if not the run folder.
        out: keep the built folder here.
        space: `organisation/name` of a Space that shows the model; made if it does not exist.
        given: header fields `license`, `license_name`, `license_link`, `language`, `base_model`, `tags`.

    Raises:
        ValueError: no token, no network, the Hub refuses; the run cannot be published, or its card names a licence or language
            that does not exist. Nothing was committed.
    """
    validate_repo_id(repo_id)
    if out is not None and Path(out).exists():
        raise ValueError(f"{out}: exists already. Name a new folder with --out.")
    if space is not None:
        validate_repo_id(space)
        gradio_version()  # before hours of upload
    if not dry_run:
        check_login()
    source = read_source(run, results)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / repo_id.rpartition("/")[2]
        folder.mkdir()
        left_out = {} if source.is_checkout else left_out_files(source.model)
        generated = build_repository(source, folder, repo_id, **given)
        check_header(folder / "README.md")
        difference = verify_repository(folder, source.model)
        sizes = {name: path.stat().st_size for name, path in repository_files(folder).items()}
        if out is not None:
            shutil.copytree(folder, out)
        if dry_run:
            return Push(sizes, difference, generated, left_out)
        commit, unchanged = upload(folder, repo_id, private, revision, message)
    shown = show(repo_id, commit, space, private) if space is not None else None
    return Push(sizes, difference, generated, left_out, commit, unchanged, shown)


def check_login() -> None:
    """Ask the Hub who we are; ValueError without a token, without a network, or if the token is not accepted."""
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError:
        raise ValueError("There is no token. Run `hf auth login`, or set HF_TOKEN; --dry_run needs none.") from None
    except HfHubHTTPError as error:
        raise ValueError(f"The Hub does not accept the token (HTTP {error.response.status_code}).") from error
    except (HTTPError, OSError) as error:
        raise ValueError(f"The Hub ({constants.ENDPOINT}) cannot be reached: {reason_of(error)}") from error


def upload(folder: Path, repo_id: str, private: bool, revision: str | None, message: str | None) -> tuple[CommitInfo, bool]:
    """Upload in one commit; also whether nothing had changed. ValueError, in one line, if that fails."""
    try:
        before = head_of(repo_id, revision)
        commit = upload_repository(folder, repo_id, private or None, revision=revision, commit_message=message)
    except UPLOAD_ERRORS as error:
        raise ValueError(
            f"The upload to {repo_id} failed: {reason_of(error)} "
            "The Hub accepts a commit completely or not at all; run the same command again."
        ) from error
    return commit, commit.oid == before


def show(repo_id: str, commit: CommitInfo, space: str, private: bool) -> CommitInfo:
    """Make the Space show the model at its commit; ValueError, in one line, if that fails."""
    try:
        return upload_space(space, space_files(repo_id, commit.oid), private or None)
    except UPLOAD_ERRORS as error:
        raise ValueError(
            f"{repo_id} was pushed, but the upload to the Space {space} failed: {reason_of(error)} Run the same command again."
        ) from error


def head_of(repo_id: str, revision: str | None) -> str | None:
    """The latest commit of a branch, `None` if there is none yet."""
    api = HfApi()
    if not api.repo_exists(repo_id) or (revision is not None and not api.revision_exists(repo_id, revision)):
        return None
    return api.model_info(repo_id, revision=revision).sha


def reason_of(error: BaseException) -> str:
    """One line; the cause where the error itself says only that something failed."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith(".") else f"{text}."


def report(done: Push, repo_id: str) -> str:
    """What the command prints."""
    lines = [f"{size:>13,}  {name}" for name, size in done.sizes.items()]
    lines.append(f"{sum(done.sizes.values()):>13,}  bytes in {len(done.sizes)} files")
    lines.append(
        "reloaded in a fresh process without wavcse: embeddings as the run's "
        f"(largest difference {done.difference:.1g} of the largest value)"
    )
    lines += [f"left out: {name} {reason}" for name, reason in done.left_out.items()]
    if not done.card_generated:
        lines.append("README.md was not generated by wavCSE and goes as it is; without it a card with the figures is made")
    if done.commit is None:
        return "\n".join([*lines, f"dry run: nothing was sent to {repo_id}"])
    lines.append(f"{'nothing has changed since' if done.unchanged else 'commit'} {done.commit.commit_url}")
    lines.append(f'AutoModel.from_pretrained("{repo_id}", revision="{done.commit.oid}", trust_remote_code=True)')
    if done.space is not None:
        lines.append(f"shown by the Space {done.space.repo_url}")
    return "\n".join(lines)


@PUSH.main
def main(args: PushArguments) -> int:
    """The command line."""
    print(report(push(**vars(args)), args.repo_id))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
