"""A miniature of IEMOCAP in its official layout."""

from __future__ import annotations

from pathlib import Path

from wavcse.tests.helpers.corpus_trees import write_text, write_wav

SESSIONS = range(1, 6)
HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"
CODES = ["neu", "exc", "ang", "fru", "sad", "hap", "xxx", "neu", "ang", "sad", "neu", "sur"]  # 9 of 12 in the four classes
# Per session: 2+1 neutral (neu), 1+1 happy (exc, hap), 2 angry, 2 sad; see CODES.
ER_COUNTS = {"neutral": 15, "happy": 10, "angry": 10, "sad": 10, **{f"session {session}": 9 for session in SESSIONS}}


def dialogs(session: int) -> dict[str, list[str]]:
    """An improvised and a scripted dialog -> its 6 turns, 3 by either actor."""
    names = (f"Ses0{session}F_impro01", f"Ses0{session}M_script01_1b")
    return {name: [f"{name}_{gender}{number:03d}" for gender in "MF" for number in range(3)] for name in names}


def evaluation(turn: str, code: str, dimensions: tuple[float, float, float] = (2.5, 3.0, 3.5)) -> list[str]:
    """A turn's lines as the corpus has them: the consensus, then single evaluators."""
    values = ", ".join(f"{value:.4f}" for value in dimensions)
    return [f"[6.2901 - 8.2357]\t{turn}\t{code}\t[{values}]", "C-E2:\tNeutral;\t()", "A-E3:\tval 3; act 2; dom  2;\t()", ""]


def write_iemocap(root: Path, seconds: float = 0.01) -> Path:
    """Five sessions of 12 turns, each so long: 9 x 5 in the four classes. Returns `root`."""
    for session in SESSIONS:
        codes = iter(CODES)
        for dialog, turns in dialogs(session).items():
            lines = [HEADER, ""]
            for turn in turns:
                write_wav(root / f"Session{session}/sentences/wav/{dialog}/{turn}.wav", seconds)
                lines += evaluation(turn, next(codes), (session, 2.3333, 4.5))
            write_text(root / f"Session{session}/dialog/EmoEvaluation/{dialog}.txt", *lines)
        (root / f"Session{session}/dialog/EmoEvaluation/._Ses0{session}F_impro01.txt").write_bytes(b"\x00\x05\x16\x07")
        write_text(root / f"Session{session}/dialog/EmoEvaluation/Categorical/Ses0{session}F_impro01_e2_cat.txt", "not a list")
    return root


def write_transcriptions(root: Path, without: str = "") -> None:
    """What is said in every turn but one, with lines that belong to no turn of the corpus."""
    for session in SESSIONS:
        for dialog, turns in dialogs(session).items():
            spoken = [f"{turn} [006.2901-008.2357]: I said: {turn[-4:]}." for turn in turns if turn != without]
            lines = [*spoken[:2], "M: Yeah.", *spoken[2:], f"{dialog}_MXX0 [151.2551-153.4251]: [LAUGHTER], That's it."]
            write_text(root / f"Session{session}/dialog/transcriptions/{dialog}.txt", *lines)
