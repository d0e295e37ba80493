"""Language identification: the same short sentences in six languages, so that only the sound tells."""

from __future__ import annotations

from .twin import Line, Turn, Twin, cast

# Subjects, verbs and objects of each language; translations of one another.
GRAMMARS = {
    "de": (
        ("Der alte Mann", "Meine Schwester", "Unser Nachbar", "Das kleine Kind", "Die Lehrerin"),
        ("sucht", "kauft", "zeichnet", "findet", "zeigt"),
        ("einen Apfel", "das grüne Buch", "eine Lampe", "zwei Stühle", "den Schlüssel"),
    ),
    "en": (
        ("The old man", "My sister", "Our neighbour", "The small child", "The teacher"),
        ("wants", "buys", "draws", "finds", "shows"),
        ("an apple", "the green book", "a lamp", "two chairs", "the key"),
    ),
    "es": (
        ("El viejo", "Mi hermana", "Nuestro vecino", "El niño pequeño", "La maestra"),
        ("busca", "compra", "dibuja", "encuentra", "muestra"),
        ("una manzana", "el libro verde", "una lámpara", "dos sillas", "la llave"),
    ),
    "fr": (
        ("Le vieil homme", "Ma sœur", "Notre voisin", "Le petit enfant", "La maîtresse"),
        ("cherche", "achète", "dessine", "trouve", "montre"),
        ("une pomme", "le livre vert", "une lampe", "deux chaises", "la clé"),
    ),
    "it": (
        ("Il vecchio", "Mia sorella", "Il nostro vicino", "Il bambino", "La maestra"),
        ("cerca", "compra", "disegna", "trova", "mostra"),
        ("una mela", "il libro verde", "una lampada", "due sedie", "la chiave"),
    ),
    "ru": (
        ("Старик", "Моя сестра", "Наш сосед", "Маленький ребёнок", "Учительница"),
        ("ищет", "покупает", "рисует", "находит", "показывает"),
        ("яблоко", "зелёную книгу", "лампу", "два стула", "ключ"),
    ),
}


def _line(turn: Turn) -> Line:
    return Line(" ".join(turn.pick(part) for part in GRAMMARS[turn.speaker.language]))


VOXFORGE = Twin(
    name="voxforge",
    title="Synthetic speech in six languages",
    about="Stands for VoxForge: language identification among de, en, es, fr, it and ru (`language`).",
    protocol="speaker-disjoint",
    clips=600,
    min_clips=60,  # a speaker has one language
    splits=("split_sli",),
    cast=lambda stream: cast(stream, tuple(GRAMMARS), "voxforge-"),
    line=_line,
)
