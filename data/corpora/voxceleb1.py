"""VoxCeleb1 (Nagrani, Chung and Zisserman, Interspeech 2017, arXiv:1706.08612): speaker identification and verification.

`wavcse-paper` and `superb` are the authors' identification split, on whole utterances. `verification-o`, `-e` and `-h` are
their three cleaned lists of trials: of the 40 test speakers, of all, and of all of one sex and nationality. With the first the
other speakers train, a tenth of them validates by hash; the other two leave nobody to train on, so another corpus has to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wavcse.data.corpora.corpus import Corpus, HubClip, Rows, matching_text, read_lines, some, tally, text_table
from wavcse.data.corpus_facts import FACTS
from wavcse.data.splits import split_by_hash

LIST = "iden_split.txt"
LINE = re.compile(r"([123]) ((id\d{5})/[^/ ]+/\d{5}\.wav)")
HUB_NAME = re.compile(r"id\d{5}/[\w-]+/\d{5}\.wav$")
SPLIT_OF_NUMBER = {"1": "train", "2": "validation", "3": "test"}
WAV_FOLDERS = ("wav", "dev/wav", "test/wav")  # the two archives unpacked together, or each into a folder of its own
# Lines of the list on the authors' page, by split.
COUNTS = {"train": 138_361, "validation": 6_904, "test": 8_251, "speakers": 1_251}


TRIALS = {"verification-o": "veri_test2.txt", "verification-e": "list_test_all2.txt", "verification-h": "list_test_hard2.txt"}
TRIAL = re.compile(r"([01]) (id\d{5}/[^/ ]+/\d{5}\.wav) (id\d{5}/[^/ ]+/\d{5}\.wav)")
# Lines: PaddleSpeech's examples/voxceleb/README.md. -e is of all speakers, -h of those who share sex and nationality with at
# least four others (Chung et al. 2018, the paper of VoxCeleb2).
TRIAL_COUNTS = {
    "verification-o": {"trials": 37_611, "test speakers": 40},
    "verification-e": {"trials": 579_818, "test speakers": 1_251},
    "verification-h": {"trials": 550_894, "test speakers": 1_190},
}
VALIDATION_SHARE = 0.1  # of the speakers that `verification-o` does not test


def _parts(root: Path, protocol: str) -> list[Path]:
    wav = [root / folder for folder in WAV_FOLDERS if (root / folder).is_dir()]
    return [root / TRIALS.get(protocol, LIST), *(wav or [root / "wav"])]


def _rows(root: Path, protocol: str) -> Rows:
    folder_of = {
        path.relative_to(root / folder).as_posix(): folder
        for folder in WAV_FOLDERS
        for path in (root / folder).glob("id*/*/*.wav")
    }
    return _verification(root, protocol, folder_of) if protocol in TRIALS else _identification(root, folder_of)


def _verification(root: Path, protocol: str, folder_of: Mapping[str, str]) -> Rows:
    path, listed, lost = root / TRIALS[protocol], [], set()
    for line in read_lines(path):
        match = TRIAL.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}: the line {line!r} is not of the form '1 id10270/x6uYqmx31kE/00001.wav id10270/...'.")
        label, *sides = match.groups()
        lost |= {name for name in sides if name not in folder_of}
        if all(name in folder_of for name in sides):
            listed.append((label, *(f"{folder_of[name]}/{name}" for name in sides)))
    tested = {name for _, *sides in listed for name in sides}
    speakers = {name.split("/")[-3] for name in tested}
    rows = []
    for name, folder in sorted(folder_of.items()):
        file_name, (speaker, video, _) = f"{folder}/{name}", name.split("/")
        if file_name in tested:
            rows.append((file_name, speaker, video, "test"))
        elif protocol == "verification-o" and speaker not in speakers:
            rows.append((file_name, speaker, video, split_by_hash(speaker, VALIDATION_SHARE)))
    table = text_table(rows, ["file_name", "speaker_id", "session", "split_sv"])
    problems = [f"{path.name} names utterances that are not there, {some(sorted(lost))}"] if lost else []
    found = {"trials": len(listed), "test speakers": len(speakers), **tally(table["split_sv"])}
    return Rows(table, found, problems, text_table(listed, ["label", "enrolment", "test"]))


def _identification(root: Path, folder_of: Mapping[str, str]) -> Rows:
    listed = _listed_splits(root / LIST)
    lost = [name for name in listed if name not in folder_of]
    problems = [f"{LIST} names utterances that are not there, {some(lost)}"] if lost else []
    speakers = sorted({name.split("/")[0] for name in lost} - {name.split("/")[0] for name in folder_of})
    problems += [f"speakers without an utterance, {some(speakers)}"] if speakers else []
    rows = [
        (f"{folder_of[name]}/{name}", name.split("/")[0], split) for name, split in sorted(listed.items()) if name in folder_of
    ]
    table = text_table(rows, ["file_name", "speaker_id", "split_sid"])
    return Rows(table, {**tally(table["split_sid"]), "speakers": table["speaker_id"].nunique()}, problems)


def _listed_splits(path: Path) -> dict[str, str]:
    """Utterance `idXXXXX/VIDEO/NNNNN.wav` -> split, as the list says."""
    splits: dict[str, str] = {}
    for line in read_lines(path):
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}: the line {line!r} is not of the form '3 id10003/na8-QEFmj44/00003.wav'.")
        if match[2] in splits:
            raise ValueError(f"{path}: {match[2]} is listed twice.")
        splits[match[2]] = SPLIT_OF_NUMBER[match[1]]
    return splits


def _from_hub(row: Mapping[str, Any], split: str, protocol: str) -> HubClip:
    name = matching_text(HUB_NAME, row)[0]
    number = next((number for number, known in SPLIT_OF_NUMBER.items() if known == split), None)
    return HubClip(f"wav/{name}", LIST, f"{number} {name}") if number else HubClip(f"wav/{name}")


VOXCELEB1 = Corpus(
    facts=FACTS["voxceleb1"],
    layout=f"{LIST} (or {', '.join(TRIALS.values())}) and wav/idXXXXX/VIDEO/NNNNN.wav (or dev/wav and test/wav)",
    counts={"wavcse-paper": COUNTS, "superb": COUNTS, **TRIAL_COUNTS},
    parts=_parts,
    rows=_rows,
    from_hub=_from_hub,
)
