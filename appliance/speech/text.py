"""From written to speakable text: normalisation as in training, and splitting into utterances."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from unidecode import unidecode

if TYPE_CHECKING:
    import inflect

# The longest utterance, 500 codes or 23 s, holds about 300 characters of speech. A character is at most one
# token, so this also keeps every utterance below the model's 400 tokens.
MAX_CHARACTERS = 300
# The model speaks very short texts badly, so neighbours are joined until they reach this length.
MIN_CHARACTERS = 40
# Longer numbers have no name in inflect and are read digit by digit.
MAX_NAMED_DIGITS = 36

_ABBREVIATIONS = {
    "capt": "captain",
    "co": "company",
    "col": "colonel",
    "dr": "doctor",
    "drs": "doctors",
    "esq": "esquire",
    "ft": "fort",
    "gen": "general",
    "hon": "honorable",
    "jr": "junior",
    "lt": "lieutenant",
    "ltd": "limited",
    "maj": "major",
    "mr": "mister",
    # As the training texts had it.
    "mrs": "misess",
    "rev": "reverend",
    "sgt": "sergeant",
    "st": "saint",
}
_CURRENCIES = {
    "$": (("dollar", "dollars"), ("cent", "cents")),
    "£": (("pound", "pounds"), ("penny", "pence")),
    "€": (("euro", "euros"), ("cent", "cents")),
}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_ABBREVIATION = re.compile(rf"\b({'|'.join(_ABBREVIATIONS)})\.")
_AMOUNT = re.compile(r"([$£€])(?=\.?\d)((?:\d+(?:,\d+)*)?)(?:\.(\d+))?", re.ASCII)
_SIGN_AFTER = re.compile(r"(?<![\d.,])(\d++(?:,\d++)*+(?:\.\d++)?+) ?([$£€])(?!\.?\d)", re.ASCII)
_THOUSANDS = re.compile(r"\d[\d,]+\d", re.ASCII)
# Tried once per run of digits, not at each of them, so that a text of digits takes no longer than another.
_DECIMAL = re.compile(r"(?<!\d)(\d++)\.(\d+)", re.ASCII)
_ORDINAL = re.compile(r"(?<!\d)(\d++)(?:st|nd|rd|th)", re.ASCII)
_CARDINAL = re.compile(r"\d+", re.ASCII)

# Of no sound: control characters that are not white space, marks of direction, joining and breaking, and lone
# halves of surrogate pairs.
_SILENT = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_PARAGRAPH = re.compile(r"\n\s*\n")
# A full stop after a single letter is more often an initial or "e.g." than the end of a sentence.
_SENTENCE = re.compile(
    r"\S.*?(?:(?<![.!?])(?!(?<=\b[a-z])\.(?![.!?]))[.!?]++['\")\]]*+(?=\s|$)|$)",
)
_CLAUSE_END = re.compile(r"[,;:]\s|\s-+\s")
_SPEAKABLE = re.compile(r"[a-z0-9]")


@cache
def _engine() -> inflect.engine:
    # Slow to import, and most texts have no digits.
    import inflect  # noqa: PLC0415

    return inflect.engine()


def _words(number: str) -> str:
    return str(_engine().number_to_words(number, andword=""))


def _spell(digits: str) -> str:
    return " ".join(_DIGITS[int(digit)] for digit in digits)


def _amount(match: re.Match[str]) -> str:
    sign, whole, fraction = match.groups()
    unit, part = _CURRENCIES[sign]
    whole = whole.replace(",", "")
    if fraction and len(fraction) > 2:
        return f"{whole}.{fraction} {unit[1]}"
    units = whole.lstrip("0")
    parts = (fraction or "").ljust(2, "0").lstrip("0")
    said = [f"{units} {unit[units != '1']}"] if units else []
    if parts:
        said.append(f"{parts} {part[parts != '1']}")
    return ", ".join(said) or f"zero {unit[1]}"


def _ordinal(match: re.Match[str]) -> str:
    if len(match[1]) > MAX_NAMED_DIGITS:
        return f"{_spell(match[1])} th"
    return str(_engine().number_to_words(match[0]))


def _cardinal(match: re.Match[str]) -> str:
    digits = match[0]
    if len(digits) > MAX_NAMED_DIGITS:
        return _spell(digits)
    number = int(digits)
    if not 1000 < number < 3000 or number == 2000:
        return _words(digits)
    # Read as a year: nineteen hundred, nineteen oh five, two thousand seven.
    if 2000 < number < 2010:
        return f"two thousand {_words(digits[-1])}"
    if number % 100 == 0:
        return f"{_words(digits[:-2])} hundred"
    pairs = _engine().number_to_words(digits, andword="", zero="oh", group=2)
    return str(pairs).replace(", ", " ")


def normalise(text: str) -> str:
    """Return text as the model reads it: lower-case ASCII, numbers and abbreviations in words, single spaces.

    Follows upstream's `english_cleaners` (utils/tokenizer.py), as the training did, except that
    £ and € are read as money, as is a sign after the amount, and $1.5 as fifty cents more than one dollar.
    """
    text = _SIGN_AFTER.sub(r"\2\1", _SILENT.sub("", text))
    text = _AMOUNT.sub(_amount, text)
    text = unidecode(text).lower()
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _DECIMAL.sub(r"\1 point \2", text)
    text = _ORDINAL.sub(_ordinal, text)
    text = _CARDINAL.sub(_cardinal, text)
    text = _ABBREVIATION.sub(lambda match: _ABBREVIATIONS[match[1]], text)
    return " ".join(text.replace('"', "").split())


def utterances(text: str) -> list[str]:
    """Split text into normalised utterances of at most 300 characters that each have something to say.

    Cuts at the ends of paragraphs and sentences; within a sentence that is too long at clauses, else between
    words, else anywhere. Sentences of a paragraph that are shorter than 40 characters join their neighbour.
    """
    found: list[str] = []
    for paragraph in _PARAGRAPH.split(text):
        joined: list[str] = []
        for sentence in _SENTENCE.findall(normalise(paragraph)):
            for piece in filter(_SPEAKABLE.search, _cut(sentence)):
                if joined and _belong_together(joined[-1], piece):
                    joined[-1] = f"{joined[-1]} {piece}"
                else:
                    joined.append(piece)
        found += joined
    return found


def _belong_together(first: str, second: str) -> bool:
    fits = len(first) + 1 + len(second) <= MAX_CHARACTERS
    return fits and min(len(first), len(second)) < MIN_CHARACTERS


def _cut(sentence: str) -> list[str]:
    pieces = []
    start = 0
    while len(sentence) - start > MAX_CHARACTERS:
        window = sentence[start : start + MAX_CHARACTERS + 1]
        clauses = [match.end() for match in _CLAUSE_END.finditer(window) if match.end() > MAX_CHARACTERS // 2]
        space = window.rfind(" ")
        end = clauses[-1] if clauses else space if space > 0 else MAX_CHARACTERS
        pieces.append(window[:end].rstrip())
        start += end + (window[end : end + 1] == " ")
    return [*pieces, sentence[start:]]
