"""Make a trained run the model of this repository; `tools/arguments.py` has the options and says what happens."""

from __future__ import annotations

from wavcse.tools.arguments import INSTALL, ROOT, InstallArguments

if __name__ == "__main__":
    INSTALL.answer()  # before the imports below, which take seconds

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME, SAFE_WEIGHTS_NAME

from wavcse.data.files import flush_to_disk, locked
from wavcse.hub.source import RESULT_FILES, TRAINING_RESULT, PushSource, read_source, results_of
from wavcse.hub.verify import verify_repository
from wavcse.hub_repository_wavcse import CODE_FILES, HANDLER, SENTENCE_TRANSFORMERS
from wavcse.settings.command import DONE
from wavcse.tools.readme import BEGIN, END, FIGURES, README, update
from wavcse.tools.root_model import DATA, PRETRAINING, TABLE, read_data, read_stage, read_table, refuse_stale

MODEL_FILES = (CONFIG_NAME, SAFE_WEIGHTS_NAME, FEATURE_EXTRACTOR_NAME)
MAX_MEGABYTES = 60.0
PRETRAINING_RESULT = "pretraining.json"
STAGE, NEW, OLD = ".install-", "new", "old"


def install(run: Path, name: str, pretraining: Sequence[Path], evaluation: Path, data: Path, root: Path = ROOT) -> float:
    """Put a run into the root.

    Args:
        run: folder of `train_accelerate.py`.
        name: what the model is called, `wavcse-...`.
        pretraining: folders of `pretrain_accelerate.py`, in the order of the stages; none where the upstream is another's.
        evaluation: folder of `wavcse eval`, with results of exactly these weights.
        data: what `wavcse.tools.training_data` wrote.
        root: the repository, or a folder that is made.

    Returns:
        The largest difference of the reloaded embeddings, as of `verify_repository`.

    Raises:
        ValueError: the weights are too large, a result is missing, broken or of other weights, README.md has no place for the
            card, or the files do not load in the root; the root is then as it was. Or another run installs.
    """
    is_new = not root.exists()
    if is_new:
        _begin(root, name)
    try:
        with locked(root):
            finish_exchange(root)
            return _install(run, name, pretraining, evaluation, data, root)
    except BaseException:
        if is_new:
            shutil.rmtree(root, ignore_errors=True)
        raise


def _begin(root: Path, name: str) -> None:
    """A new root: what this repository has of code, and a README with nothing but the place for what is generated."""
    root.mkdir(parents=True)
    for file in (*CODE_FILES, *SENTENCE_TRANSFORMERS, HANDLER):
        shutil.copyfile(ROOT / file, root / file)
    (root / README).write_text(f"# {name}\n\n{BEGIN}\n{END}\n", encoding="utf-8")


def _install(run: Path, name: str, pretraining: Sequence[Path], evaluation: Path, data: Path, root: Path) -> float:
    source = read_source(run, evaluation)
    results = _checked_results(source, pretraining, data, run / "results" / TRAINING_RESULT)
    with tempfile.TemporaryDirectory(prefix=STAGE, dir=root) as stage:  # in the root: files are exchanged by renaming
        new = Path(stage) / NEW
        _copy(source, results, results_of(name), root, new)
        update(new, name=name)
        difference = verify_repository(new, source.model)
        _exchange(root, Path(stage))
    return difference


def finish_exchange(root: Path) -> None:
    """Remove what killed runs left in the root; where one was exchanging files, which were all checked by then, go on."""
    for stage in root.glob(f"{STAGE}*"):
        if (stage / OLD).exists():
            _exchange(root, stage)
            print(f"{root}: an exchange of files that was killed is finished.", file=sys.stderr)
        shutil.rmtree(stage)


def _checked_results(source: PushSource, pretraining: Sequence[Path], data: Path, training: Path) -> dict[str, Path]:
    """Name below the results -> file, all of them sound and of these weights."""
    refuse_stale(source)
    megabytes = (source.model / SAFE_WEIGHTS_NAME).stat().st_size / 1e6
    if megabytes > MAX_MEGABYTES:
        raise ValueError(f"{source.model}: {megabytes:.1f} MB of weights; the root takes {MAX_MEGABYTES:g} MB at most.")
    stages = [stage / "results" / PRETRAINING_RESULT for stage in pretraining]
    results = {
        TABLE: source.results / TABLE,
        DATA: data,
        TRAINING_RESULT: training,
        **{PRETRAINING.format(number): stage for number, stage in enumerate(stages, start=1)},
    }
    missing = [path for path in results.values() if not path.is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: there is no such file; finish that step first.")
    read_table(results[TABLE], source)
    read_data(data)
    for stage in stages:
        read_stage(stage)
    return results


def _copy(source: PushSource, results: Mapping[str, Path], place: Path, root: Path, new: Path) -> None:
    """The root's code and README, the model and its results. What an evaluation knows clip by clip is not published."""
    records = new / place / "results"
    records.mkdir(parents=True)
    for origin, names in ((root, (*CODE_FILES, README)), (source.model, MODEL_FILES)):
        for name in names:
            shutil.copyfile(origin / name, new / name)
    for path in sorted((source.results / "results").glob(RESULT_FILES)):
        shutil.copyfile(path, records / path.name)
    for name, path in results.items():
        shutil.copyfile(path, new / place / name)


def _exchange(root: Path, stage: Path) -> None:
    """Move what is installed from the stage into the root, and what was there to the stage.

    All of it or, after an error, nothing. After a kill the stage has a folder `OLD`, and the same call goes on.
    """
    new, old = stage / NEW, stage / OLD
    results = [path.relative_to(new) for path in sorted((new / "results").glob("*"))]
    waiting = [name for name in (*results, FIGURES, *MODEL_FILES, README) if (new / name).exists()]
    for name in waiting:
        for path in (new / name).rglob("*") if (new / name).is_dir() else (new / name,):
            flush_to_disk(path)
    old.mkdir(exist_ok=True)
    with ExitStack() as undo:
        for name in waiting:
            target, kept = root / name, old / name
            for folder in (target.parent, kept.parent):
                folder.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rename(kept)
                undo.callback(kept.rename, target)
            (new / name).rename(target)
            undo.callback(target.rename, new / name)
        undo.pop_all()


@INSTALL.main
def main(args: InstallArguments) -> int:
    """The command line."""
    difference = install(**vars(args))
    print(f"{args.root}: holds the model of {args.run} now; its embeddings differ by {difference:.1g} of the largest value")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
