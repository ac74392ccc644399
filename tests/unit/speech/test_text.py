"""What is read out, and where it is cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.speech.text import MAX_CHARACTERS, normalise, utterances

PROSE = st.text(alphabet="abcxyz ABC.,;:!?'\"()-\n 0129$£€ßé中😀", max_size=900)


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Hello,  World!", "hello, world!"),
        ("“Café” — naïve", "cafe -- naive"),
        ("42", "forty-two"),
        ("1,234,567", "one million, two hundred thirty-four thousand, five hundred sixty-seven"),
        ("in 1999, 1900, 1905", "in nineteen ninety-nine, nineteen hundred, nineteen oh five"),
        ("2000, 2007, 2024", "two thousand, two thousand seven, twenty twenty-four"),
        ("3.14", "three point fourteen"),
        ("the 1st, 22nd and 103rd", "the first, twenty-second and one hundred and third"),
        ("$1", "one dollar"),
        ("$5.01", "five dollars, one cent"),
        ("$1.5, $.50 and $0", "one dollar, fifty cents, fifty cents and zero dollars"),
        ("£2, or €1,000.20", "two pounds, or one thousand euros, twenty cents"),
        (
            "Mr. and Mrs. Smith met Dr. No on St. James St.",
            "mister and misess smith met doctor no on saint james saint",
        ),
        ("Drs. who", "doctors who"),
        ("a [STOP] b", "a [stop] b"),
        ("he\x00l\x07lo\x7f \x9b2J", "hello twoj"),
        ("\u202eright\u202c to\u200f le\u200bft\u2066\u2069\ufeff", "right to left"),
        ("\ud83d lone \udc4d", "lone"),
        ("👍🏽 yes 👩‍👩‍👧 no", "yes no"),
        ("line\u2028and\u2029paragraph\x85", "line and paragraph"),
        ("٣ and ½ and ① and \uff15", "three and one/two and one and five"),
        ("£0.99 and $1,000,000.01", "ninety-nine pence and one million dollars, one cent"),
        (
            "5€, 1,000.50 $ or 3 $5 notes",
            "five euros, one thousand dollars, fifty cents or three five dollars notes",
        ),
        ("-5 % & 1e9", "-five % & oneenine"),
        ("9" * 37, " ".join(["nine"] * 37)),
        ("", ""),
    ],
)
def test_normalise(written: str, spoken: str) -> None:
    assert normalise(written) == spoken


# Every code point there is, of which surrogates are no characters.
@given(st.text(alphabet=st.one_of(st.characters(), st.characters(categories=["Cc", "Cf", "Cs", "Nd", "No"]))))
def test_any_text_is_normalised_to_what_can_be_read(text: str) -> None:
    normal = normalise(text)
    assert re.fullmatch(r"[ -~]*", normal)
    assert not re.search(r"[A-Z0-9\"]|  |^ | $", normal)
    assert all(len(utterance) <= MAX_CHARACTERS for utterance in utterances(text))


@pytest.mark.parametrize(
    "text",
    [
        "1" * 50_000,
        "1," * 25_000,
        "." * 50_000 + "a",
        "$1" * 2_000,
        "a'" * 25_000,
        "x" * 200_000,
        "- " * 50_000,
    ],
)
def test_long_monotonous_texts_are_read(text: str) -> None:
    found = utterances(text)
    assert max((len(utterance) for utterance in found), default=0) <= MAX_CHARACTERS
    assert (not found) == (not re.search(r"[a-z0-9]", text))


@given(PROSE)
def test_normalised_text_is_what_the_tokenizer_knows(text: str) -> None:
    normal = normalise(text)
    assert normal.isascii()
    assert not re.search(r"[0-9A-Z\"]|\s\s|^\s|\s$", normal)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One sentence. ", ["one sentence."]),
        (
            "The first sentence is long enough for itself. The second is as well, or is it really not? Yes!",
            [
                "the first sentence is long enough for itself.",
                "the second is as well, or is it really not? yes!",
            ],
        ),
        ("A heading\n\nAnd a paragraph.", ["a heading", "and a paragraph."]),
        ("Things, e.g. the U.S. and J. R. R. Tolkien.", ["things, e.g. the u.s. and j. r. r. tolkien."]),
        ("... !!! \n\n ---", []),
        ("😀", []),
    ],
)
def test_utterances(text: str, expected: list[str]) -> None:
    assert utterances(text) == expected


def test_a_long_sentence_is_cut_at_its_clauses_else_at_its_words() -> None:
    clauses = ", ".join(["a clause of this sentence that goes on"] * 12)
    assert all(piece.endswith((",", "on")) for piece in utterances(clauses))
    words = utterances("word " * 100)
    assert [set(piece.split()) for piece in words] == [{"word"}, {"word"}]
    assert [len(piece) for piece in utterances("x" * 700)] == [300, 300, 100]


@settings(deadline=None)
@given(PROSE)
@example("a" * 4096)
@example("1" * 4096)
@example("Hi. " * 1024)
@example("!" * 2000 + "'" * 2000 + "x")
def test_utterances_are_short_speakable_and_lose_no_word(text: str) -> None:
    found = utterances(text)
    for utterance in found:
        assert 0 < len(utterance) <= MAX_CHARACTERS
        assert re.search("[a-z]", utterance)
    letters = re.sub("[^a-z]", "", "".join(found))
    assert letters == re.sub("[^a-z]", "", "".join(normalise(part) for part in re.split(r"\n\s*\n", text)))
