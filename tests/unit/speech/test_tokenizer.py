"""Text to tokens and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.speech.tiny import make
from appliance.speech.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tokenizer(bundle: Path) -> TextTokenizer:
    return TextTokenizer(bundle / "tokenizer.json")


def test_the_special_tokens_and_the_merges(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("the cat")
    assert [tokenizer.decode([token]) for token in ids] == ["the", " ", "c", "at"]
    assert tokenizer.encode(" ") == [2]
    assert tokenizer.decode([0, *ids, 1, 0]) == "the cat"


@pytest.mark.parametrize("word", ["[stop]", "[unk]", "[space]"])
def test_text_cannot_spell_a_special_token(tokenizer: TextTokenizer, word: str) -> None:
    assert not {0, 2} & set(tokenizer.encode(word))


def test_the_whole_alphabet_is_within_the_model(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(" ".join([*LETTERS, *"!'(),-./:;?", "~"]))
    assert max(ids) < 255
    assert ids.count(1) == 1


@given(st.text(alphabet=LETTERS + " !'(),-./:;?", max_size=300))
def test_round_trip(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) <= len(text)


def test_the_tiny_tokenizer_is_the_same_every_time(bundle: Path, tmp_path: Path) -> None:
    make(tmp_path / "again")
    names = sorted(path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file())
    assert names == sorted(
        path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()
    )
    for name in names:
        assert (bundle / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
