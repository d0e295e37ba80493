"""NIST's speaker recognition evaluation of 2008 (LDC2011S05, LDC2011S08): the trials of ten seconds against ten seconds.

Every model is enrolled with one side of a telephone call, and tested by others; NIST's keys say of which speaker each is.
"""

from __future__ import annotations

from pathlib import Path

from wavcse.data.corpora.corpus import Corpus, Rows, read_lines, some, text_table
from wavcse.data.corpus_facts import FACTS

KEYS = "data/keys/NIST_SRE08_KEYS.v0.1"
MODELS, TRIALS = f"{KEYS}/model-keys/NIST_SRE08_10sec.model.key", f"{KEYS}/trial-keys/NIST_SRE08_10sec-10sec.trial.key"
AUDIO = "data/sides"
GENDERS = {"f": "female", "m": "male"}
LABELS = {"target": "1", "nontarget": "0"}


def _parts(root: Path, protocol: str) -> list[Path]:
    return [root / name for name in (MODELS, TRIALS, AUDIO)]


def _rows(root: Path, protocol: str) -> Rows:
    models = _models(root / MODELS)
    sides = {path.stem: path.relative_to(root).as_posix() for path in (root / AUDIO).glob("*_[ab].*")}
    speakers: dict[str, tuple[str, str]] = {side: own for side, *own in models.values()}  # of sides; trials add more
    listed, lost = [], {side for side, *_ in models.values()} - set(sides)
    unknown: set[str] = set()
    for model, side, label in _trials(root / TRIALS):
        if model not in models:
            raise ValueError(f"{root / TRIALS}: the model {model!r} is not in {MODELS}.")
        enrolled, *own = models[model]
        if label == "1":
            speakers.setdefault(side, tuple(own))
        if side in sides and enrolled in sides:
            listed.append((label, sides[enrolled], sides[side]))
        lost |= {side} - set(sides)
    used = {name for _, *pair in listed for name in pair}
    rows = []
    for side, file_name in sorted(sides.items()):
        if file_name in used:
            unknown |= set() if side in speakers else {side}
            # Who is in no target trial is nobody who enrols, as far as the keys say.
            speaker, gender = speakers.get(side, (f"nobody-{side}", ""))
            rows.append((file_name, speaker, gender, "test"))
    table = text_table(rows, ["file_name", "speaker_id", "gender", "split_sv"])
    trials = text_table(listed, ["label", "enrolment", "test"])
    problems = [f"the keys name sides that are not there, {some(sorted(lost))}"] if lost else []
    found = {"models": len(models), "clips": len(table), "trials": len(trials), "sides of unknown speakers": len(unknown)}
    return Rows(table, found, problems, trials)


def _models(path: Path) -> dict[str, tuple[str, str, str]]:
    """Model -> side that enrols it (`SEGMENT_a`), speaker, gender."""
    models = {}
    for line in read_lines(path):
        cells = line.split(",")
        segment, _, side = cells[2].partition(":") if len(cells) >= 4 else ("", "", "")
        if side not in ("a", "b") or cells[1] not in GENDERS:
            if not models and not line[:1].isdigit():
                continue  # a line that names the columns
            raise ValueError(f"{path}: the line {line!r} is not of the form 'MODEL,f,SEGMENT:a,SPEAKER'.")
        models[cells[0]] = (f"{segment}_{side}", cells[3], GENDERS[cells[1]])
    return models


def _trials(path: Path) -> list[tuple[str, str, str]]:
    """(model, side, label) of every trial."""
    trials = []
    for line in read_lines(path):
        cells = line.split(",")
        if len(cells) < 4 or cells[2] not in ("a", "b") or cells[3] not in LABELS:
            if not trials and not line[:1].isdigit():
                continue
            raise ValueError(f"{path}: the line {line!r} is not of the form 'MODEL,SEGMENT,a,target'.")
        trials.append((cells[0], f"{cells[1]}_{cells[2]}", LABELS[cells[3]]))
    return trials


# Names and columns of the keys are those that Kaldi reads (egs/sre16/v1/local/make_sre08.pl). How many trials and sides this
# condition has, no public source that we found says: what is read is counted, and compared with nothing.
SRE08 = Corpus(
    facts=FACTS["sre08"],
    layout=(
        f"{MODELS}, {TRIALS} and {AUDIO}/SEGMENT_a.wav or _b.wav, the sides of the .sph files of both releases on their own "
        "(`sph2pipe -f wav -p -c 1` and `-c 2`)"
    ),
    counts={"10sec-10sec": {}},
    parts=_parts,
    rows=_rows,
)
