"""What is known of the public corpora without reading one: title, source, licence, and what each protocol means.

The adapters in `wavcse.data.corpora` and the tasks of the evaluation read it here; nothing has to be imported but this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PARTIAL = "-partial"  # behind the protocol's name in the manifest of an incomplete corpus


@dataclass(frozen=True)
class CorpusFacts:
    """One corpus.

    Args:
        name: on the command line, and in the manifest column `corpus`.
        title: in messages and tables.
        source: official page.
        licence: in a few words.
        protocols: name -> how the corpus is labelled and split, in a line; the first is the default.
    """

    name: str
    title: str
    source: str
    licence: str
    protocols: Mapping[str, str]


FACTS: dict[str, CorpusFacts] = {
    facts.name: facts
    for facts in (
        CorpusFacts(
            name="speech_commands_v0.01",
            title="Speech Commands v0.01",
            source="http://download.tensorflow.org/data/ (speech_commands_v0.01.tar.gz and, for superb, "
            "speech_commands_test_set_v0.01.tar.gz; paper: arXiv:1804.03209)",
            licence="CC BY 4.0",
            protocols={
                "wavcse-paper": "the corpus's lists; ten commands, every other word _unknown_; no clip of _silence_",
                "superb": "split by the hash of the speaker, test from the test archive; ten commands, _unknown_, _silence_",
            },
        ),
        CorpusFacts(
            name="speech_commands_v0.02",
            title="Speech Commands v0.02",
            source="http://download.tensorflow.org/data/ (speech_commands_v0.02.tar.gz; paper: arXiv:1804.03209)",
            licence="CC BY 4.0",
            protocols={
                "official-35": "the corpus's lists; every word is a class",
                "official-12": "the corpus's lists; ten commands, every other word _unknown_; no clip of _silence_",
            },
        ),
        CorpusFacts(
            name="voxceleb1",
            title="VoxCeleb1",
            source="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html",
            licence="CC BY 4.0 for the annotations; the recordings belong to the owners of the videos",
            protocols={
                "wavcse-paper": "the identification split, iden_split.txt",
                "superb": "the same: iden_split.txt",
                "verification-o": "the cleaned trials of the 40 test speakers; the others train, 10 % validate by hash",
                "verification-e": "the cleaned trials of all speakers; nobody is left to train on",
                "verification-h": "the cleaned hard trials, of one sex and nationality; nobody is left to train on",
            },
        ),
        CorpusFacts(
            name="librispeech",
            title="LibriSpeech",
            source="https://www.openslr.org/12/",
            licence="CC BY 4.0",
            protocols={
                "other": (
                    "all of train; dev-other validates, test-other is tested, with trials of all its pairs: of one speaker "
                    "from two books, of two of one gender (Vaessen and van Leeuwen 2023)"
                ),
                "clean": "the same with dev-clean and test-clean",
                "clean-360": "train-clean-360 alone trains; dev-clean and test-clean (Porjazovski et al. 2024)",
            },
        ),
        CorpusFacts(
            name="voxceleb2",
            title="VoxCeleb2 (development set)",
            source="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox2.html",
            licence="CC BY 4.0 for the annotations; the recordings belong to the owners of the videos",
            protocols={
                "speech-speaker-mtl": (
                    "97 women and 97 men are held out (split_sv), with 100,000 + 100,000 trials; of the others 2 % of the "
                    "videos validate, at most two each (split_sid); by hash where Vaessen and van Leeuwen (2023) drew"
                ),
            },
        ),
        CorpusFacts(
            name="hub5_2000",
            title="HUB5 2000, English",
            source="https://catalog.ldc.upenn.edu/LDC2002S09 and LDC2002T43",
            licence="LDC User Agreement",
            protocols={
                "english": "the segments of the reference, all tested; words in LibriSpeech's characters, no annotations"
            },
        ),
        CorpusFacts(
            name="sre08",
            title="NIST SRE 2008",
            source="https://catalog.ldc.upenn.edu/LDC2011S05 and LDC2011S08",
            licence="LDC User Agreement",
            protocols={"10sec-10sec": "NIST's trials of ten seconds against ten seconds; their number is not checked"},
        ),
        CorpusFacts(
            name="iemocap",
            title="IEMOCAP",
            source="https://sail.usc.edu/iemocap/",
            licence="USC's release form, on request; for academic, non-commercial research",
            protocols={
                "wavcse-paper": "every tenth turn is tested (9::10) or validates (4::10); the speakers are in all splits",
                "superb": "five folds, split_er_fold1 to split_er_fold5, each testing one session",
                "session-5": (
                    "split_vad (all turns) and split_er: session 5 is tested, session 4 validates; no speaker is in two splits"
                ),
                "paper-guess": (
                    "wavcse-paper's split_er, and split_vad (all turns) in the same way; a guess, the paper does not state it"
                ),
                "leave-one-session-out": (
                    "five folds, split_er_fold1 to split_er_fold5, each testing one session; by hash 10 % of the other turns "
                    "validate; every turn needs a transcript"
                ),
            },
        ),
        CorpusFacts(
            name="football",
            title="Football Keywords",
            source="the link in https://github.com/AmirmohammadRostami/KeywordsSpotting-EfficientNet-A0",
            licence="none stated by its authors",
            protocols={
                "official": (
                    "the corpus's Train and Test, 10 % of Train validates by hash; Unknown and Silence are left out; "
                    "speakers are not known and may be shared; the number of training clips is not checked"
                ),
            },
        ),
        CorpusFacts(
            name="voxforge",
            title="VoxForge",
            source="https://www.voxforge.org/home/downloads (the folders Trunk/Audio of each language)",
            licence="GPL",
            protocols={
                "speaker-disjoint": (
                    "users are split 80/10/10 by hash, anonymous ones train; there is no official split, and the corpus "
                    "grows, so clips are not counted"
                ),
            },
        ),
        CorpusFacts(
            name="kathbath",
            title="Kathbath",
            source="https://github.com/AI4Bharat/IndicSUPERB (clean: train, valid and test known)",
            licence="CC0 (the copy ai4bharat/Kathbath on the Hub: CC BY 4.0)",
            protocols={
                "official": (
                    "IndicSUPERB's split, train, valid and test_known, speakers of all languages together; the numbers of"
                    " clips are not published, so they are not checked"
                ),
                "train-valid": (
                    "for the copy on the Hub, which has no test_known: 10 % of train is tested, by hash; valid validates"
                ),
            },
        ),
        CorpusFacts(
            name="cnceleb1",
            title="CN-Celeb1",
            source="https://www.openslr.org/82/",
            licence="CC BY-SA 4.0, see that page; the recordings belong to the owners of the videos",
            protocols={
                "official": (
                    "dev trains, 10 % of its speakers validate by hash; the trials of eval, in M_trials.csv; the number "
                    "of training clips is not checked"
                ),
            },
        ),
        CorpusFacts(
            name="timit",
            title="TIMIT",
            source="https://catalog.ldc.upenn.edu/LDC93S1",
            licence="LDC User Agreement",
            protocols={
                "official": (
                    "TEST is tested, 10 % of the speakers of TRAIN validate by hash; speakers disjoint; eight dialect regions"
                ),
                "paper-guess": (
                    "every tenth clip is tested (9::10) or validates (4::10), one sentence of each speaker, who are in "
                    "all splits; a guess from the paper's figures, which are multiples of 1/630"
                ),
            },
        ),
        CorpusFacts(
            name="aesdd",
            title="AESDD",
            source="https://m3c.web.auth.gr/research/aesdd-speech-emotion-recognition/",
            licence="none stated by its authors",
            protocols={
                "speaker-disjoint": (
                    "of six actors two are tested, one validates, three train, by hash; the corpus grows, so clips are "
                    "not counted"
                ),
                "paper-guess": "EmoBox's fold 1, 10 % of its training clips validate by hash; the actors are in all splits",
            },
        ),
        CorpusFacts(
            name="fluent_speech_commands",
            title="Fluent Speech Commands",
            source="https://fluent.ai/fluent-speech-commands-a-dataset-for-spoken-language-understanding-research/",
            licence="Fluent Speech Commands Public License, in the archive; for academic research",
            protocols={
                "official": "the corpus's lists, speakers disjoint; 31 intents ACTION_OBJECT_LOCATION without 'none'",
            },
        ),
        CorpusFacts(
            name="slurp",
            title="SLURP",
            source="https://github.com/pswietojanski/slurp (lists; the audio by its scripts/download_audio.sh)",
            licence="CC BY 4.0 for the texts, CC BY-NC 4.0 for the audio",
            protocols={
                "official": (
                    "the corpus's lists train, devel and test of real recordings; intents are SCENARIO_ACTION; speakers may "
                    "be in several lists"
                ),
                "with-synthetic": "the same; the synthetic sentences, which count as one speaker, train too",
            },
        ),
        CorpusFacts(
            name="cafe",
            title="CaFE",
            source="https://zenodo.org/records/1478765",
            licence="CC BY-NC-SA 4.0",
            protocols={
                "speaker-disjoint": (
                    "of twelve actors a woman and a man are tested, another two validate, eight train, by hash; there is no "
                    "official split"
                ),
            },
        ),
        CorpusFacts(
            name="common_voice",
            title="Common Voice",
            source="https://commonvoice.mozilla.org/datasets (one language of one release)",
            licence="CC0 1.0",
            protocols={
                "official": "the lists train, dev and test of a release, speakers disjoint; clips are not counted",
            },
        ),
    )
}
