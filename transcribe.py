"""`wavcse transcribe`: what is said in the clips of a manifest, by any speech recogniser of transformers, as two more columns.

    OUT.csv                            the manifest with the columns `transcript` and `transcript_language`, or others
    OUT.skipped.csv                    clips that could not be used, with reasons
    OUT.transcripts/<key>/<name>.json  content digest of a clip -> its text and language; may be removed, it saves time

A killed run continues, and more clips cost only themselves. Nothing is padded but what a model itself pads (Whisper's 30 s),
and clips of one length go together, so a transcript does not depend on its batch.

Shapes: `N` clips.
"""

from __future__ import annotations

from wavcse.data.arguments import TRANSCRIBE, TranscribeArguments

if __name__ == "__main__":
    TRANSCRIBE.answer()  # before the imports below, which take seconds

import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor

from wavcse.data.corpus_pass import (
    CorpusPass,
    SkippedClip,
    batches_by_length,
    num_workers,
    readable_clips,
    skipped_clips,
    unfinished,
    write_skipped,
)
from wavcse.data.files import (
    DamagedFile,
    check_piece,
    digest_of,
    locked,
    remove_partials,
    set_aside,
    write_atomically,
    write_piece,
)
from wavcse.data.files import json_text as as_json
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Clip, Manifest
from wavcse.eval.encoder import SavedModel
from wavcse.settings.command import DONE, SOME_SKIPPED
from wavcse.settings.fields import usable_device

WHISPER_S = 30.0  # Whisper hears a shorter clip with silence up to this
MULTILINGUAL_VOCABULARY = 51_865  # from here on a Whisper knows languages, as in OpenAI's whisper/model.py
LANGUAGE_TOKEN = re.compile(r"<\|([a-z]{2,3})\|>")
MOST_TOKENS = 224  # that Whisper writes for 30 s: half of its context, as in OpenAI's whisper/decoding.py
UNUSED_WEIGHTS = ("masked_spec_embed",)  # of training only; many checkpoints lack them
SHORT_S = 0.5  # a clip below this may be too short for a model's first layers
STORE_INTERVAL_S = 30.0  # what a kill costs at most, besides the batch in progress


class Transcript(NamedTuple):
    """What a model heard; the language is empty where the model does not tell."""

    text: str
    language: str


class Transcriber:
    """A speech recogniser of transformers: CTC, or an encoder with a decoder, such as Whisper.

    Args:
        model: folder or Hub id (`id@revision`) with safetensors weights; none of its own code is run.
        language: code of the language that is spoken; Whisper is told it, for others it is only noted. `None` = Whisper finds
            out.
        device: torch device.

    Attributes:
        sampling_rate: in Hz, of the waveforms that it takes.
        key: names everything that changes a transcript.

    Raises:
        ValueError: the model cannot be loaded, is no speech recogniser, or lacks weights of one.
    """

    def __init__(self, model: str, language: str | None = None, device: str | torch.device = "cpu"):
        self.language, checkpoint = language, SavedModel.parse(model)
        identity = checkpoint.identity()
        options = {"revision": checkpoint.revision, "trust_remote_code": False}
        with checkpoint.loading():
            config = AutoConfig.from_pretrained(checkpoint.path, **options)
            kind = _kind_of(config)
            how = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
            self.model, loaded = kind.from_pretrained(checkpoint.path, **how, **options)
            lacking = [name for name in loaded["missing_keys"] if not name.endswith(UNUSED_WEIGHTS)]
            if lacking:
                raise ValueError(f"It was not trained to recognise speech: it has no weights for {sorted(lacking)[0]}.")
            self.processor = AutoProcessor.from_pretrained(checkpoint.path, **options)
        self.model.to(device).eval()
        self.is_ctc, self.is_whisper = kind is AutoModelForCTC, config.model_type == "whisper"
        self.sampling_rate: int = self.processor.feature_extractor.sampling_rate
        if self.is_whisper:
            _complete_generation_config(self.model, self.processor.tokenizer)
            _check_language(language, self.model.generation_config)
        vocabulary = sorted(self.processor.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        generation = self.model.generation_config.to_dict() if self.model.can_generate() else {}
        generation.pop("transformers_version", None)
        if self.is_whisper:  # as earlier versions said it, whose transcripts hold
            generation |= {"max_length": None, "max_new_tokens": MOST_TOKENS}
        said = {"language": language, "vocabulary": vocabulary, "generation": generation}
        self.key = digest_of({name: value for name, value in identity.items() if name != "model"} | said)

    def cost_s(self, duration_s: float) -> float:
        """Seconds of audio that go through the model for a clip."""
        return max(duration_s, WHISPER_S) if self.is_whisper else duration_s

    @torch.inference_mode()
    def transcribe(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        """Transcripts of N waveforms `[samples]`, in order; ValueError for a clip that is too short for the model."""
        found: dict[int, Transcript] = {}
        for places in self._groups([len(waveform) for waveform in waveforms]):
            some = [waveforms[place] for place in places]
            try:
                found |= zip(places, self._heard(some))
            except RuntimeError as error:
                if len(some[0]) >= SHORT_S * self.sampling_rate:
                    raise
                raise ValueError(f"a clip of {len(some[0])} samples is too short for this model ({error}).") from error
        return [found[place] for place in range(len(waveforms))]

    def _groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Places of the clips that go through together: those of one length; for Whisper all that fit its window."""
        groups: dict[int, list[int]] = {}
        for place, length in enumerate(lengths):
            fits = self.is_whisper and length <= WHISPER_S * self.sampling_rate
            groups.setdefault(0 if fits else length, []).append(place)
        return list(groups.values())

    def _heard(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        if self.is_whisper:
            tokens, languages = self._whisper(waveforms)
        else:
            inputs = self._inputs(waveforms)
            tokens = self.model(**inputs).logits.argmax(dim=-1) if self.is_ctc else self.model.generate(**inputs)
            languages = [self.language or ""] * len(waveforms)
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [Transcript(" ".join(text.split()), language) for text, language in zip(texts, languages)]

    def _inputs(self, waveforms: Sequence[np.ndarray], **options: Any) -> Mapping[str, torch.Tensor]:
        options = {"sampling_rate": self.sampling_rate, "return_tensors": "pt", **options}
        return self.processor.feature_extractor(list(waveforms), **options).to(self.model.device)

    def _whisper(self, waveforms: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[str]]:
        """Tokens, and the language of each clip: the one given, or the likeliest in its first 30 s."""
        generation = self.model.generation_config
        options: dict[str, Any] = {}
        inputs = self._inputs(waveforms, return_attention_mask=True)
        encoded = self.model.get_encoder()(inputs["input_features"])
        languages = ["en"] * len(waveforms)
        if generation.is_multilingual:
            languages = [self.language] * len(waveforms) if self.language else self._languages(encoded)
            options = {"language": languages, "task": "transcribe"}
        if len(waveforms[0]) <= WHISPER_S * self.sampling_rate:
            mask = inputs["attention_mask"]
            return self.model.generate(encoder_outputs=encoded, attention_mask=mask, **options), languages
        whole = self._inputs(waveforms, return_attention_mask=True, truncation=False, padding="longest")
        return self.model.generate(**whole, return_timestamps=True, **options), languages

    def _languages(self, encoded: Any) -> list[str]:
        tokens = self.model.detect_language(encoder_outputs=encoded)
        names = self.processor.tokenizer.convert_ids_to_tokens(tokens.flatten().tolist())
        return [LANGUAGE_TOKEN.fullmatch(name)[1] for name in names]


def _kind_of(config: Any) -> type:
    """The class that loads a recogniser of this configuration; ValueError if there is none."""
    for kind in (AutoModelForSpeechSeq2Seq, AutoModelForCTC):
        if type(config) in kind._model_mapping:
            return kind
    raise ValueError(f"A model of type {config.model_type!r} is no speech recogniser (CTC, or an encoder with a decoder).")


def _complete_generation_config(model: Any, tokenizer: Any) -> None:
    """What `generate` has to know of Whisper's special tokens, where a folder's generation_config.json does not say it."""
    generation, ids = model.generation_config, tokenizer.get_vocab()
    is_multilingual = model.config.vocab_size >= MULTILINGUAL_VOCABULARY
    known = {
        "is_multilingual": is_multilingual,
        "no_timestamps_token_id": ids.get("<|notimestamps|>"),
        "lang_to_id": {token: place for token, place in ids.items() if LANGUAGE_TOKEN.fullmatch(token)},
        "task_to_id": {name: ids.get(f"<|{name}|>") for name in ("transcribe", "translate")},
    }
    for name, value in known.items():
        if getattr(generation, name, None) is None:
            setattr(generation, name, value)
    # Not by `max_new_tokens`: Whisper's `generate` fills in a default of `max_length` beside it, and warns of both.
    generation.max_length, generation.max_new_tokens = MOST_TOKENS, None  # it adds the first tokens, such as the language


def _check_language(language: str | None, generation: Any) -> None:
    known = (
        sorted(LANGUAGE_TOKEN.fullmatch(token)[1] for token in generation.lang_to_id) if generation.is_multilingual else ["en"]
    )
    if language is not None and language not in known:
        raise ValueError(f"language is {language!r}; this model knows: {', '.join(known)}.")


# ---- what is done, and kept ----


class TranscriptStore:
    """Transcripts by content digest of the clip.

    Args:
        folder: of one model and its settings; made when something is written.
    """

    def __init__(self, folder: Path):
        self.folder, self.known = folder, {}
        self._waiting: dict[str, Transcript] = {}
        self._saved_at = time.monotonic()
        if folder.exists():
            remove_partials(folder)
        for path in sorted(folder.glob("*.json")):
            try:
                check_piece(path)
            except DamagedFile as error:
                set_aside(path, error)
                continue
            own = json.loads(path.read_text(encoding="utf-8"))
            self.known.update({digest: Transcript(*found) for digest, found in own.items()})

    def add(self, found: Mapping[str, Transcript]) -> None:
        """Add transcripts; they are written with others, every `STORE_INTERVAL_S`."""
        self.known.update(found)
        self._waiting.update(found)
        if time.monotonic() - self._saved_at >= STORE_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Write what was added."""
        if self._waiting:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = as_json(self._waiting, ensure_ascii=False)
            write_piece(self.folder, ".json", lambda partial: partial.write_text(text, encoding="utf-8"))
        self._waiting, self._saved_at = {}, time.monotonic()


def transcribe_manifest(args: TranscribeArguments, show_progress: bool = True) -> list[SkippedClip]:
    """Transcribe the clips of a manifest into the manifest `args.out`; returns those that could not be used.

    Their transcripts are empty, which means that they have none.

    Raises:
        ValueError: the manifest or the model cannot be read, another run makes the same file, or no clip can be used.
    """
    out, manifest = Path(args.out), Manifest(args.manifest)
    with locked(out, is_file=True):
        device = torch.device(usable_device(args.device))
        transcriber = Transcriber(args.model, args.language, device)
        folder = out.with_suffix(".transcripts")
        store = TranscriptStore(folder / transcriber.key)
        facts = Inspector(folder).inspect(manifest.clips, show_progress=show_progress)
        readable, reasons = readable_clips(manifest.clips, facts)
        readable.sort(key=lambda item: -item.duration_s)
        batches = batches_by_length(readable, args.batch_seconds, [transcriber.cost_s(item.duration_s) for item in readable])
        workers = num_workers(args.workers, len(batches), device)
        batches = unfinished(batches, lambda item: item.digest in store.known)

        def load(clip: Clip) -> np.ndarray:
            return clip.load(transcriber.sampling_rate)

        corpus_pass = CorpusPass(batches, load, transcriber.transcribe, show_progress, workers=workers, words="transcribe")
        try:
            for batch, found in corpus_pass:
                store.add({item.digest: transcript for item, transcript in zip(batch, found)})
        finally:  # also where a worker died or the run is stopped
            store.flush()
        skipped = skipped_clips(manifest.clips, reasons | corpus_pass.report.skipped)
        if len(skipped) == len(manifest):
            raise ValueError(f"None of the {len(manifest)} clips can be used; the first: {skipped[0].reason}")
        found = [store.known.get(fact.digest, Transcript("", "")) for fact in facts]
        if args.only_language is not None:
            found = [own if own.language == args.only_language else own._replace(text="") for own in found]
        _write(manifest, found, out, args.column)
        write_skipped(out.with_suffix(".skipped.csv"), skipped)
    return skipped


def _write(manifest: Manifest, found: Sequence[Transcript], out: Path, column: str) -> None:
    """The manifest's table with the transcripts, its paths as seen from `out`."""
    prefix = Path(os.path.relpath(manifest.path.parent.resolve(), out.parent.resolve()))
    names = [os.path.normpath(prefix / name) if name else "" for name in manifest.column("file_name")]
    texts = {column: [own.text for own in found], f"{column}_language": [own.language for own in found]}
    table = manifest.table.assign(file_name=[Path(name).as_posix() if name else "" for name in names], **texts)
    write_atomically(out, table.to_csv(index=False, lineterminator="\n"))


@TRANSCRIBE.main
def main(args: TranscribeArguments) -> int:
    """The command line; returns 0, or 3 if some clips had to be skipped."""
    skipped = transcribe_manifest(args)
    print(f"{args.out}: the manifest with {args.column} and {args.column}_language")
    if not skipped:
        return DONE
    where = Path(args.out).with_suffix(".skipped.csv")
    print(f"{len(skipped)} clips were skipped, see {where}; the first: {skipped[0].reason}")
    return SOME_SKIPPED


if __name__ == "__main__":
    sys.exit(main())
