"""Identification of known speakers of eleven Indian languages, four of each, who read numbers."""

from __future__ import annotations

from .twin import Line, Turn, Twin, cast

# One to ten.
NUMBERS = {
    "bn": "এক দুই তিন চার পাঁচ ছয় সাত আট নয় দশ",
    "gu": "એક બે ત્રણ ચાર પાંચ છ સાત આઠ નવ દસ",
    "hi": "एक दो तीन चार पाँच छह सात आठ नौ दस",
    "kn": "ಒಂದು ಎರಡು ಮೂರು ನಾಲ್ಕು ಐದು ಆರು ಏಳು ಎಂಟು ಒಂಬತ್ತು ಹತ್ತು",
    "ml": "ഒന്ന് രണ്ട് മൂന്ന് നാല് അഞ്ച് ആറ് ഏഴ് എട്ട് ഒമ്പത് പത്ത്",
    "mr": "एक दोन तीन चार पाच सहा सात आठ नऊ दहा",
    "or": "ଏକ ଦୁଇ ତିନି ଚାରି ପାଞ୍ଚ ଛଅ ସାତ ଆଠ ନଅ ଦଶ",
    "pa": "ਇੱਕ ਦੋ ਤਿੰਨ ਚਾਰ ਪੰਜ ਛੇ ਸੱਤ ਅੱਠ ਨੌਂ ਦਸ",
    "ta": "ஒன்று இரண்டு மூன்று நான்கு ஐந்து ஆறு ஏழு எட்டு ஒன்பது பத்து",
    "te": "ఒకటి రెండు మూడు నాలుగు ఐదు ఆరు ఏడు ఎనిమిది తొమ్మిది పది",
    "ur": "ایک دو تین چار پانچ چھ سات آٹھ نو دس",
}
WORDS_PER_CLIP = 3


def _line(turn: Turn) -> Line:
    numbers = NUMBERS[turn.speaker.language].split()
    return Line(" ".join(turn.pick(numbers) for _ in range(WORDS_PER_CLIP)))


KATHBATH = Twin(
    name="kathbath",
    title="Synthetic speakers of eleven Indian languages",
    about="Stands for Kathbath: identification of known speakers (`speaker_id`), four for each of eleven languages.",
    protocol="known-speakers",
    clips=660,
    min_clips=132,  # three clips for each of 44 speakers
    splits=("split_sid",),
    cast=lambda stream: cast(stream, tuple(NUMBERS), "kathbath-", {"": 4 * len(NUMBERS)}),
    line=_line,
)
