"""Make a trained run the model of this repository: its three files into the root, its results into results/tiny, the README.

    python -m wavcse.hub.install runs/tiny/model --pretraining runs/tiny/pretrain runs/tiny/lasr \\
        --evaluation runs/tiny/eval --data runs/tiny/data.json

Before anything is replaced, the files are loaded with the root's code in a fresh process, and their embeddings compared.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME, SAFE_WEIGHTS_NAME

from wavcse.hub.readme import ROOT, update
from wavcse.hub.source import TRAINING_RESULT, PushSource, read_source
from wavcse.hub.tiny import DATA, PRETRAINING, RESULTS, TABLE, read_data, refuse_stale
from wavcse.hub.verify import verify_repository
from wavcse.repository_wavcse import CODE_FILES

MODEL_FILES = (CONFIG_NAME, SAFE_WEIGHTS_NAME, FEATURE_EXTRACTOR_NAME)
MAX_MEGABYTES = 25.0
PRETRAINING_RESULT = "pretraining.json"


def install(run: Path, pretraining: Sequence[Path], evaluation: Path, data: Path, root: Path = ROOT) -> float:
    """Put a run into the root.

    Args:
        run: folder of `train_accelerate.py`.
        pretraining: folders of `pretrain_accelerate.py`, in the order of the stages.
        evaluation: folder of `wavcse eval`, with results of exactly these weights.
        data: what `wavcse.hub.training_data` wrote.
        root: the repository.

    Returns:
        The largest difference of the reloaded embeddings, as of `verify_repository`.

    Raises:
        ValueError: the weights are too large, a result is missing or of other weights, or the files do not load in the root.
    """
    source = read_source(run, evaluation)
    refuse_stale(source)
    read_data(data)
    megabytes = (source.model / SAFE_WEIGHTS_NAME).stat().st_size / 1e6
    if megabytes > MAX_MEGABYTES:
        raise ValueError(f"{source.model}: {megabytes:.1f} MB of weights; the root takes {MAX_MEGABYTES:g} MB at most.")
    results = {
        TABLE: evaluation / TABLE,
        DATA: data,
        TRAINING_RESULT: run / "results" / TRAINING_RESULT,
        **{PRETRAINING.format(i): stage / "results" / PRETRAINING_RESULT for i, stage in enumerate(pretraining, start=1)},
    }
    missing = [path for path in results.values() if not path.is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: there is no such file; finish that step first.")
    difference = _verified(source, root)
    for name in MODEL_FILES:
        _replace(source.model / name, root / name)
    _keep_results(results, source, root / RESULTS)
    update(root)
    return difference


def _verified(source: PushSource, root: Path) -> float:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        folder.mkdir()
        for origin, names in ((root, CODE_FILES), (source.model, MODEL_FILES)):
            for name in names:
                shutil.copyfile(origin / name, folder / name)
        return verify_repository(folder, source.model)


def _keep_results(results: Mapping[str, Path], source: PushSource, folder: Path) -> None:
    """Copy the results; those of an earlier model go. What an evaluation knows clip by clip is not published."""
    shutil.rmtree(folder / "results", ignore_errors=True)
    for old in folder.glob(PRETRAINING.format("*")):
        old.unlink()
    (folder / "results").mkdir(parents=True)
    for path in sorted((source.results / "results").glob("*__*.json")):
        _replace(path, folder / "results" / path.name)
    for name, path in results.items():
        _replace(path, folder / name)


def _replace(origin: Path, target: Path) -> None:
    """Copy a file so that the target is never half written."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.copyfile(origin, partial)
    partial.replace(target)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 with one line."""
    parser = argparse.ArgumentParser(
        prog="python -m wavcse.hub.install", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder of the training; its hub/ is the model")
    parser.add_argument("--pretraining", type=Path, nargs="+", required=True, help="run folders of the stages, in order")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder that `wavcse eval` wrote")
    parser.add_argument("--data", type=Path, required=True, help="JSON file of `python -m wavcse.hub.training_data`")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: the one that this package lies in)")
    args = parser.parse_args(argv)
    try:
        difference = install(**vars(args))
    except (ValueError, OSError) as error:
        print(f"wavcse install: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{args.root}: holds the model of {args.run} now; its embeddings differ by {difference:.1g} of the largest value")
    return 0


if __name__ == "__main__":
    sys.exit(main())
