"""What the page answers to a recording, as HTML that holds all it shows: no answer leaves a file behind.

Shapes: `E` embedding size.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from transformers import AutoModelForAudioClassification, PreTrainedModel

from wavcse.app.arguments import AppArguments
from wavcse.audio_wavcse import AudioFile, load_waveform
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.endpoint_wavcse import WITH_HEADS
from wavcse.eval.encoder import SavedModel
from wavcse.retrieval.calibration import BUT, Calibration
from wavcse.retrieval.nearest import unit_rows
from wavcse.retrieval.query import check_same_space, embedder_for, embedder_of
from wavcse.retrieval.similar import similar

PLAYED_S = 30.0  # of a clip of the table, so that a page of players stays small
HIDDEN = ("path", "rank")  # columns of a table that are not shown


class Answers:
    """A model, and what goes with it: a table to search, a calibration to read similarities by.

    Attributes:
        has_heads: whether it names labels.
        table: to search; `None` = there is none.

    Raises:
        ValueError: the model, the table or the calibration cannot be read, or they do not go together.
    """

    def __init__(self, args: AppArguments):
        self.args = args
        self.table = StoredEmbeddings(args.table) if args.table is not None else None
        if self.table is None:
            self.embedder = embedder_for(args.model, args.device)
        else:
            self.embedder = embedder_of(self.table, args.model, args.device)
        encoder = self.embedder.encoder
        config = encoder.model.config
        self.has_heads = bool(config.tasks) and WITH_HEADS in (config.architectures or ())
        self.model: PreTrainedModel = encoder.model
        if self.has_heads:
            self.model = _with_heads(args.model, encoder.model)
            encoder.model = self.model.base_model  # so that one upstream is held, and not two
        self.calibration = Calibration.read(args.calibration) if args.calibration is not None else None
        if self.calibration is not None:
            check_same_space(Path(args.calibration), self.calibration.made_with, self.embedder, args.model, but=BUT)

    def labels(self, recording: str | None) -> str:
        """Every label of every head with its probability, or the number of a regression head."""
        found = self.model.predict(self.waveform(recording), show_progress_bar=False)
        tasks = list(self.model.config.tasks)
        return "\n".join(_head(task, value) for task, value in (found if len(tasks) > 1 else {tasks[0]: found}).items())

    def compare(self, one: str | None, other: str | None) -> str:
        """The cosine similarity of two recordings, and what the calibration says of it."""
        first, second = unit_rows(np.stack([self._embedding(one, "First"), self._embedding(other, "Second")]))
        similarity = float(first @ second)
        return f"<p>Cosine similarity <strong>{similarity:.4f}</strong> (from -1 to 1).</p>\n<p>{self.reading(similarity)}</p>"

    def reading(self, similarity: float) -> str:
        """What a similarity says, in words."""
        known = self.calibration
        if known is None:
            return "What is high depends on the model and the recordings; no calibration (wavcse calibrate) was given."
        return (
            f"Probability <strong>{known.probability(similarity):.1%}</strong> that both have the same {escape(known.label)}, "
            f"if same and different were equally likely before. Measured on {known.same + known.different} labelled pairs: "
            f"equal error rate {known.eer:.1%}, Cllr {known.cllr:.2f} bits. Other microphones, languages or rooms need a "
            "measurement of their own."
        )

    def nearest(self, recording: str | None) -> str:
        """The clips of the table that are most similar, each with what is known of it and, where audio is given, a player."""
        return _rows(self.ranked(recording), self._player if self.args.audio is not None else None)

    def ranked(self, recording: str | None) -> pd.DataFrame:
        """The rows that `nearest` shows, as `similar` gives them."""
        return similar(self.table, self._embedding(recording), self.args.top)

    def vector(self, recording: str | None) -> str:
        """A link that holds the recording's embedding as a file of NumPy, float32 `[E]`: `model.encode` of it."""
        vector = self.model.base_model.encode(self.waveform(recording), show_progress_bar=False)
        file = io.BytesIO()
        np.save(file, vector)
        name = f"{Path(recording).stem}.npy"
        link = _data_link("application/octet-stream", file.getvalue())
        return (
            f'<p>{len(vector)} numbers, length {np.linalg.norm(vector):.3f}. <a href="{link}" download="{escape(name)}">'
            f"Download {escape(name)}</a></p>\n<p>Read it with <code>numpy.load</code>.</p>"
        )

    def waveform(self, recording: str | None, which: str = "") -> np.ndarray:
        """A recording as float32 `[samples]` at the model's rate.

        Raises:
            ValueError: there is none, it is too large or too long, or it is no audio that the model can serve.
        """
        what = f"{which} recording" if which else "Recording"
        if recording is None:
            raise ValueError(f"{what}: there is none yet. Record one, or choose an audio file.")
        path, args = Path(recording), self.args
        name = f"{what} {path.name}"
        if not path.is_file():  # recordings do not stay
            raise ValueError(f"{name}: has been deleted meanwhile. Record or choose it again.")
        if path.stat().st_size > args.max_megabytes * 1e6:
            raise ValueError(f"{name}: is larger than {args.max_megabytes:g} MB, the most that is taken. Cut or compress it.")
        with AudioFile(path, name) as file:  # by its header, before anything is decoded
            self._check_seconds(file.duration_s, name)
        waveform = load_waveform(path, self.embedder.rate, name, self.embedder.encoder.feature_extractor.max_duration_s)
        self._check_seconds(len(waveform) / self.embedder.rate, name)
        if not waveform.any():  # the model takes silence, but nobody asks about it
            raise ValueError(f"{name}: is silent. Check that the microphone is on, and record again.")
        self.embedder.encoder.feature_extractor.check(waveform, name)
        return waveform

    def _check_seconds(self, seconds: float, name: str) -> None:
        if seconds > self.args.max_seconds:
            raise ValueError(f"{name}: lasts {seconds:.1f} s; at most {self.args.max_seconds:g} s are taken. Cut it.")

    def _embedding(self, recording: str | None, which: str = "") -> np.ndarray:
        """`[E]`, with the table's settings if there is one."""
        ((*_, rows),) = self.embedder.compute([self.embedder.cut(self.waveform(recording, which), "Recording")])
        return rows[0]

    def _player(self, row: pd.Series) -> str:
        """The audio of a row of the table within the page, its first `PLAYED_S` seconds."""
        name, start_s = str(row["id"]), float(row.get("start_s", 0.0))
        end_s = min(float(row.get("end_s", row["seconds"])), start_s + PLAYED_S)
        try:
            with AudioFile(Path(self.args.audio, row["path"]), name) as file:
                samples, rate = file.read(start_s, end_s), file.sampling_rate
        except ValueError as error:
            return escape(str(error))
        sound = io.BytesIO()
        soundfile.write(sound, np.clip(samples, -1, 1), rate, format="FLAC")
        return f'<audio controls aria-label="{escape(name)}" src="{_data_link("audio/flac", sound.getvalue())}"></audio>'


def _with_heads(model: str, body: PreTrainedModel) -> PreTrainedModel:
    """The model with its heads, where `body` is."""
    saved = SavedModel.parse(model)
    options = {"revision": saved.revision, "trust_remote_code": True, "use_safetensors": True}
    with saved.loading():
        return AutoModelForAudioClassification.from_pretrained(saved.path, **options).to(body.device).eval()


def _head(task: str, found: Any) -> str:
    """A head's answer as a table; `found` as `predict` gives it."""
    if not isinstance(found, list):
        return f"<p>{escape(task)}: <strong>{found:.3f}</strong></p>"
    rows = "".join(
        f'<tr><th scope="row">{escape(entry["label"])}</th><td>{entry["score"]:.1%}</td>'
        f'<td><meter min="0" max="1" value="{entry["score"]:.4f}" aria-label="{escape(entry["label"])}"></meter></td></tr>'
        for entry in found
    )
    return f"<table><caption>{escape(task)}</caption>{rows}</table>"


def _rows(ranked: pd.DataFrame, player: Any) -> str:
    """Rows of `similar` as a table, with the player of each, a function of a row."""
    columns = [name for name in ranked if name not in HIDDEN]
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in [*columns, *(["audio"] if player else [])])
    lines = []
    for _, row in ranked.iterrows():
        cells = [escape(f"{row[name]:.4f}" if isinstance(row[name], float) else str(row[name])) for name in columns]
        lines.append("".join(f"<td>{cell}</td>" for cell in [*cells, *([player(row)] if player else [])]))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f"<table><caption>The most similar clips first</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    )


def _data_link(kind: str, content: bytes) -> str:
    """A link that is the file itself (RFC 2397)."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
