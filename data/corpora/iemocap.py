"""IEMOCAP (Busso et al. 2008): emotions of ten actors in five dyadic sessions, improvised and scripted.

Labels are the consensus lines of dialog/EmoEvaluation. The four classes are neutral, happy (with excited), angry and sad;
other turns have no `emotion`. All have valence, activation and dominance from 1 to 5, the dimensional task (`split_vad`), and
the words of dialog/transcriptions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wavcse.data.corpora.corpus import Corpus, HubClip, Rows, matching_text, read_lines, some, tally, text_table
from wavcse.data.corpus_facts import FACTS
from wavcse.data.splits import Fold

if TYPE_CHECKING:
    import pandas as pd

SESSIONS = range(1, 6)
EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad"}
STYLES = {"impro": "improvised", "script": "scripted"}
GENDERS = {"F": "female", "M": "male"}
NUMBER = r"(-?\d+(?:\.\d+)?)"
LINE = re.compile(rf"\[{NUMBER} - {NUMBER}\]\t(\w+)\t(\w+)\t\[{NUMBER}, {NUMBER}, {NUMBER}\]")
TURN = re.compile(r"(Ses0([1-5])[FM]_(impro|script)\w*)_([FM])\w+")  # dialog, session, style, who speaks
SPOKEN = re.compile(r"(\S+) \[[\d.]+-[\d.]+\]: ?(.*)")  # of a transcription; lines of others have no name, or no times
EVALUATIONS, TRANSCRIPTIONS, LEFT_OUT = "dialog/EmoEvaluation", "dialog/transcriptions", "leave-one-session-out"
BY_SESSION = {"4": "validation", "5": "test"}
TRAIN_SHARE = 0.8  # of the sessions that a fold does not test, SUPERB's
COUNTS = {
    **{"neutral": 1_708, "happy": 1_636, "angry": 1_103, "sad": 1_084},
    **{"session 1": 1_085, "session 2": 1_023, "session 3": 1_151, "session 4": 1_031, "session 5": 1_241},
}
TURNS = 10_039


def _parts(root: Path, protocol: str) -> list[Path]:
    folders = (EVALUATIONS, "sentences/wav", *([TRANSCRIPTIONS] if protocol == LEFT_OUT else []))
    return [root / f"Session{session}" / folder for session in SESSIONS for folder in folders]


def _rows(root: Path, protocol: str) -> Rows:
    import pandas as pd

    tables, problems = zip(*(_session(root, session) for session in SESSIONS))
    table = pd.concat(tables, ignore_index=True)
    labelled = table[table["emotion"] != ""]
    if protocol == "superb":
        for session in SESSIONS:
            table[f"split_er_fold{session}"] = _fold(labelled, str(session)).reindex(table.index, fill_value="")
    elif protocol == LEFT_OUT:
        for session in SESSIONS:
            table[f"split_er_fold{session}"] = _session_left_out(labelled, str(session)).reindex(table.index, fill_value="")
    elif protocol == "session-5":
        table["split_vad"] = table["session"].map(BY_SESSION).fillna("train")
        table["split_er"] = table["split_vad"].where(table["emotion"] != "", "")
    else:
        table["split_er"] = _every_tenth(labelled).reindex(table.index, fill_value="")
    if protocol == "paper-guess":
        table["split_vad"] = _every_tenth(table)
    found = tally(labelled["emotion"]) | tally("session " + labelled["session"]) | {"turns": len(table)}
    silent = table["file_name"][table["transcript"] == ""].map(lambda name: Path(name).stem)
    found["transcripts"] = len(table) - len(silent)
    problems = [problem for of_session in problems for problem in of_session]
    if protocol == LEFT_OUT and len(silent):
        problems.append(f"{TRANSCRIPTIONS} lacks the words of turns, {some(silent)}")
    return Rows(table, found, problems)


def _every_tenth(labelled: pd.DataFrame) -> pd.Series:
    """Validation = 4::10, test = 9::10, in the order of session and path; the speakers are in all three."""
    import pandas as pd

    place = np.arange(len(labelled)) % 10
    return pd.Series(np.select([place == 4, place == 9], ["validation", "test"], "train"), labelled.index, dtype=object)


def _fold(labelled: pd.DataFrame, session: str) -> pd.Series:
    """The session is tested; of the others, the 20 % of turns with the smallest sha1 of their names validate.

    SUPERB draws its 20 % with a generator of PyTorch's; the same share, other clips.
    """
    import pandas as pd

    others = labelled[labelled["session"] != session]
    order = others["file_name"].map(lambda name: hashlib.sha1(Path(name).stem.encode()).hexdigest()).sort_values().index
    validation = order[: len(others) - int(TRAIN_SHARE * len(others))]
    split = pd.Series("train", labelled.index, dtype=object)
    split[labelled["session"] == session] = "test"
    split[validation] = "validation"
    return split


def _session_left_out(labelled: pd.DataFrame, session: str) -> pd.Series:
    """As `folds: {column: session}` of a fine-tuning divides the turns: the session is tested, of the others 10 % validate."""
    fold = Fold("session", frozenset([session]))
    return labelled.apply(lambda turn: fold.split(turn["session"], turn["file_name"]), axis=1)


def _session(root: Path, session: int) -> tuple[pd.DataFrame, list[str]]:
    """The turns of a session in the order of their paths, and sentences about what its two folders do not share."""
    folder = root / f"Session{session}"
    evaluations, words = _evaluations(folder / EVALUATIONS), _transcripts(folder / TRANSCRIPTIONS)
    wavs = {path.stem: path.relative_to(root).as_posix() for path in (folder / "sentences/wav").glob("[!.]*/[!.]*.wav")}
    lost = [turn for turn in evaluations if turn not in wavs]
    unjudged = sorted({Path(wavs[turn]).parent.name for turn in wavs} - {TURN.fullmatch(turn)[1] for turn in evaluations})
    problems = [f"Session{session} lacks the audio of evaluated turns, {some(lost)}"] if lost else []
    problems += [f"Session{session} lacks the evaluation of dialogs, {some(unjudged)}"] if unjudged else []
    turns = sorted(evaluations.keys() & wavs.keys(), key=wavs.__getitem__)
    rows = [(*_row(wavs[turn], turn, evaluations[turn]), words.get(turn, "")) for turn in turns]
    columns = ["emotion", "emotion_code", "valence", "activation", "dominance", "speaker_id", "gender", "session", "style"]
    return text_table(rows, ["file_name", *columns, "transcript"]), problems


def _row(file_name: str, turn: str, evaluation: re.Match) -> tuple[str, ...]:
    _, session, style, gender = TURN.fullmatch(turn).groups()
    code, *dimensions = evaluation.group(4, 5, 6, 7)
    speaker = f"Ses0{session}{gender}"
    return (file_name, EMOTIONS.get(code, ""), code, *dimensions, speaker, GENDERS[gender], session, STYLES[style])


def _evaluations(folder: Path) -> dict[str, re.Match]:
    """Turn -> its consensus line; the lines of single evaluators, which do not start with a bracket, are passed over."""
    evaluations: dict[str, re.Match] = {}
    for path in sorted(folder.glob("[!.]*.txt")):
        for line in read_lines(path):
            if not line.startswith("["):
                continue
            match = LINE.fullmatch(line)
            if match is None or TURN.fullmatch(match[3]) is None:
                raise ValueError(
                    f"{path}: the line {line!r} is not of the form '[START - END]<tab>TURN<tab>EMOTION<tab>[V, A, D]'."
                )
            if match[3] in evaluations:
                raise ValueError(f"{path}: {match[3]} is evaluated twice.")
            evaluations[match[3]] = match
    return evaluations


def _transcripts(folder: Path) -> dict[str, str]:
    """Turn -> its words; none where the folder is not there."""
    spoken = (SPOKEN.fullmatch(line) for path in sorted(folder.glob("[!.]*.txt")) for line in read_lines(path))
    return {match[1]: match[2].strip() for match in spoken if match}


def _from_hub(row: Mapping[str, Any], split: str, protocol: str) -> HubClip:
    turn = matching_text(TURN, row)
    emotion = row.get("emotion") or row.get("major_emotion")
    dimensions = [
        row.get(name, row.get(short))
        for name, short in (("valence", "EmoVal"), ("activation", "EmoAct"), ("dominance", "EmoDom"))
    ]
    if emotion is None or None in dimensions:
        raise ValueError(
            f"{turn[0]} needs the columns emotion, valence, activation, dominance (or major_emotion, EmoVal, EmoAct, EmoDom)"
        )
    times = f"[{row.get('start_time') or 0:.4f} - {row.get('end_time') or 0:.4f}]"
    line = f"{times}\t{turn[0]}\t{emotion[:3].lower()}\t[{', '.join(f'{value:.4f}' for value in dimensions)}]"
    session, words = f"Session{turn[2]}", row.get("transcription", row.get("transcript"))
    return HubClip(
        f"{session}/sentences/wav/{turn[1]}/{turn[0]}.wav",
        f"{session}/{EVALUATIONS}/{turn[1]}.txt",
        line,
        {f"{session}/{TRANSCRIPTIONS}/{turn[1]}.txt": f"{turn[0]} [0.0-0.0]: {words}"} if words else {},
    )


IEMOCAP = Corpus(
    facts=FACTS["iemocap"],
    layout=(
        "Session1 to Session5, each with sentences/wav/DIALOG/TURN.wav, dialog/EmoEvaluation/DIALOG.txt and "
        "dialog/transcriptions/DIALOG.txt"
    ),
    counts={
        "wavcse-paper": COUNTS,
        "superb": COUNTS,
        "session-5": {**COUNTS, "turns": TURNS},
        "paper-guess": {**COUNTS, "turns": TURNS},
        LEFT_OUT: {**COUNTS, "turns": TURNS},
    },
    parts=_parts,
    rows=_rows,
    from_hub=_from_hub,
)
