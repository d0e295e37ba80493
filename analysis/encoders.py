"""Encoders as the analyses see them: vectors of a clip under names ("layer 3", "embedding"), and frames of a layer.

A kind of encoder is a function and a line in `KINDS`. All of them go through the encoder contract of `wavcse.eval`.

Shapes: `N` clips, `E` size of a vector, `T` frames, `D` upstream width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from wavcse.analysis.arguments import EncoderSettings
from wavcse.data.files import shown_path
from wavcse.eval.baselines import build_encoders, short_name
from wavcse.eval.baselines.layers import BestLayerEncoder
from wavcse.eval.baselines.mfcc import PAPER_FRAMES, MFCCEncoder
from wavcse.eval.encoder import WAVCSE_TYPES, Encoder, SavedModel, WavCSEEncoder, candidates_of, untrain
from wavcse.words.encoder import SavedUtteranceEncoder, SavedWordEncoder, is_word_model

EMBEDDING = "embedding"
MFCCS = {"mfcc": {}, "mfcc_paper": PAPER_FRAMES}  # model -> arguments of `MFCCEncoder`


@dataclass(frozen=True)
class View:
    """One vector per clip: which reader gives it, and the place among the reader's candidates.

    Attributes:
        name: in records and tables.
        layer: whose mean over time it is; `None` where it is not a layer.
    """

    name: str
    reader: int
    place: int = 0
    layer: int | None = None


@dataclass
class AnalyzedEncoder:
    """An encoder with all its vectors.

    Attributes:
        name: in tables and files.
        readers: what embeds, each an `Encoder` of the evaluation, with stores of their own.
        views: the vectors, layers first, the embedding last.
        source: gives frames of layers (`frames(waveforms, layers)`).
        model: path or id, or one of `MFCCS`.
        is_untrained: whether the weights are random.
        module: what has the parameters; `None` for MFCCs.
        language: that it has learnt from, or "".
    """

    name: str
    readers: list[Encoder]
    views: list[View]
    source: Any
    model: str
    is_untrained: bool = False
    module: torch.nn.Module | None = field(default=None, repr=False)
    language: str = ""

    @property
    def sampling_rate(self) -> int:
        """In Hz, of the waveforms that it takes."""
        return self.readers[0].sampling_rate

    @property
    def reads_words(self) -> bool:
        """Whether an utterance is its words in order, by their times."""
        return isinstance(self.source, SavedUtteranceEncoder)

    @property
    def targets(self) -> str:
        """Where the word vectors are from that it has learnt to name (LEE); "" for all others."""
        own = getattr(self.readers[-1], "identity", {}).get("targets", "none")
        return "" if own == "none" else own

    def view(self, name: str) -> View:
        """The view of this name."""
        return next(own for own in self.views if own.name == name)

    def size(self, view: View) -> int:
        """E of a view."""
        return self.readers[view.reader].embedding_size

    def vectors(self, tables: Mapping[str, np.ndarray], view: View, rows: np.ndarray) -> np.ndarray:
        """Float32 `[len(rows), E]` from the tables of `embed_clips`."""
        size = self.size(view)
        return tables[self.readers[view.reader].name][rows, view.place * size : (view.place + 1) * size]

    def frames(self, waveforms: Sequence[np.ndarray], view: View) -> list[np.ndarray]:
        """The layer of a view frame by frame, float32 `[T, D]` per clip without padding; its mean over T is the view's vector.

        The one implementation of the contract *frames* behind it is that of `encode_frames` (of other transformers models
        their own layers). Of MFCCs, and of layers pooled by mean and standard deviation, the mean over T is the first half.

        Raises:
            ValueError: the view is an embedding, which has no frames.
        """
        if view.layer is None:
            raise ValueError(f"{self.name}: {view.name} has no frames; name a layer.")
        return [own[:, 0] for own in self.source.frames(waveforms, [view.layer])]

    @property
    def bytes_per_clip(self) -> int:
        """What is kept of a clip."""
        return sum(4 * candidates_of(reader) * reader.embedding_size for reader in self.readers)

    def record(self) -> dict[str, Any]:
        """What a record says of it."""
        identity = dict(getattr(self.readers[-1], "identity", {}))
        return {"name": self.name, "model": self.model, "is_untrained": self.is_untrained, **identity}


def build_encoder(name: str, settings: EncoderSettings, every: int, seed: int, device: str) -> AnalyzedEncoder:
    """Load one encoder.

    Args:
        every: keep every so many layers, and the last, where the settings name none.
        seed: of untrained weights.

    Raises:
        ValueError: it cannot be loaded, has no such layer, or cannot be untrained.
    """
    build = next(own for is_of, own in KINDS if is_of(settings.model))
    if settings.words and build is not _words:
        raise ValueError(f"encoders.{name}: words is for models of `wavcse words`; {settings.model} is none.")
    name = short_name(settings.model) if name == settings.model else name
    return replace(build(name, settings, every, seed, device), language=settings.language)


def _mfcc(name: str, settings: EncoderSettings, every: int, seed: int, device: str) -> AnalyzedEncoder:
    if settings.untrained:
        raise ValueError(f"encoders.{name}: MFCCs have no weights to be untrained.")
    reader = MFCCEncoder(**MFCCS[settings.model])
    reader.name = name
    return AnalyzedEncoder(name, [reader], [View("statistics", 0, layer=0)], reader, settings.model)


def _wavcse(name: str, settings: EncoderSettings, every: int, seed: int, device: str) -> AnalyzedEncoder:
    (own,) = build_encoders(settings.model, name, [], device, None, settings.temporal_pooling, settings.context)
    return _with_layers(own, own, name, settings, every, seed)


def _checkpoint(name: str, settings: EncoderSettings, every: int, seed: int, device: str) -> AnalyzedEncoder:
    how = (device, None, settings.temporal_pooling, settings.context)
    (reader,) = build_encoders(settings.model, name, ["last_layer"], *how)
    return _with_layers(reader.source, None, name, settings, every, seed)


def _with_layers(
    source: Any, own: WavCSEEncoder | None, name: str, settings: EncoderSettings, every: int, seed: int
) -> AnalyzedEncoder:
    """Layers of a source, and the embedding of the wavCSE model that it is, if it is one."""
    if settings.untrained:
        untrain(source.model, seed)
        source.identity = {**source.identity, "weights_sha256": f"random, seed {seed}"}
    last = source.num_layers - 1
    layers = settings.layers or sorted({*range(0, last, every), last})
    reader = BestLayerEncoder(source, f"{name}.layers", layers)
    views = [View(f"layer {layer}", 0, place, layer) for place, layer in enumerate(layers)]
    readers: list[Encoder] = [reader]
    if own is not None:
        readers.append(own)
        views.append(View(EMBEDDING, 1))
    return AnalyzedEncoder(name, readers, views, source, shown_path(settings.model), settings.untrained, source.model)


def _is_wavcse(model: str) -> bool:
    return SavedModel.parse(model).model_type in WAVCSE_TYPES


def _words(name: str, settings: EncoderSettings, every: int, seed: int, device: str) -> AnalyzedEncoder:
    """With the times of words, a clip is its words in order, which are its frames."""
    if settings.words:
        reader, view = SavedUtteranceEncoder(settings.model, settings.words, name, device), View(EMBEDDING, 0, layer=0)
    else:
        reader, view = SavedWordEncoder(settings.model, name, device), View(EMBEDDING, 0)
    if settings.untrained:
        reader.untrain(seed)
    return AnalyzedEncoder(name, [reader], [view], reader, settings.model, settings.untrained, reader.module)


# Whether a model is of the kind, and what builds it; the first that fits is taken.
KINDS: list[tuple[Callable[[str], bool], Callable[..., AnalyzedEncoder]]] = [
    (lambda model: model in MFCCS, _mfcc),
    (is_word_model, _words),
    (_is_wavcse, _wavcse),
    (lambda model: True, _checkpoint),
]
