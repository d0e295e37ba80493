"""The YAML header of a card, checked before anything is sent: the Hub takes licences and languages by names that it knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import metadata_load

# https://huggingface.co/docs/hub/repositories-licenses
LICENCES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc
    lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa
    odbl odc-by ofl-1.1 open-mdw openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl
    zlib
    """.split()
)
# ISO 639-1. ISO 639-2 and 639-3 have thousands, of which only the form is checked.
TWO_LETTERS = frozenset(
    """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en
    eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv
    ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne
    ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss
    st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
    """.split()
)
THREE_LETTERS = re.compile(r"[a-z]{3}")
NOT_ONE = ("multilingual", "code")  # what the Hub has beside codes of languages
LICENCE_NAME = re.compile(r"[a-z0-9.-]+")


def is_language(code: Any) -> bool:
    """Whether a text can be the code of a language by ISO 639."""
    return isinstance(code, str) and (code in TWO_LETTERS or THREE_LETTERS.fullmatch(code) is not None)


def check_header(card: Path) -> None:
    """Look at licence and languages in the header of a README.md, which somebody may have written by hand.

    Raises:
        ValueError: the header is no YAML, or the Hub would not know what it names; the message says what it knows.
    """
    try:
        header = metadata_load(card) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{card.name}: its header cannot be read: {' '.join(str(error).split())}") from error
    _check_licence(header)
    languages = header.get("language", [])
    for language in languages if isinstance(languages, list) else [languages]:
        if not is_language(language) and language not in NOT_ONE:
            # YAML reads `no`, Norwegian, as a boolean.
            hint = " Put it in quotes." if isinstance(language, bool) else ""
            raise ValueError(f"language is {language!r}, which is not a code of ISO 639, such as en, pl or yue.{hint}")


def _check_licence(header: Mapping[str, Any]) -> None:
    licence, name = header.get("license"), header.get("license_name")
    for one in licence if isinstance(licence, list) else [licence]:
        if one is not None and one not in LICENCES:
            raise ValueError(
                f"license is {one!r}, which the Hub does not know. It knows apache-2.0, mit, cc-by-4.0 and others "
                "(huggingface.co/docs/hub/repositories-licenses); for any other say --license other --license_name NAME."
            )
    if licence == "other" and not name:
        raise ValueError("license is 'other'; the Hub then needs a name for it: --license_name NAME.")
    if name is not None and (licence != "other" or not LICENCE_NAME.fullmatch(str(name))):
        raise ValueError(
            f"license_name is {name!r}; it goes with `license: other`, and has small letters, digits, '.' and '-' only."
        )
