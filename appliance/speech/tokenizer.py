"""Normalised text to tokens: a byte-pair encoding in the file format of the `tokenizers` library."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

SPACE = "[SPACE]"
STOP = "[STOP]"
UNKNOWN = "[UNK]"


class TextTokenizer:
    """The tokenizer of a bundle. Its alphabet is lower case, so no text can spell a special token."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a normalised text."""
        ids: list[int] = self._tokenizer.encode(text.replace(" ", SPACE)).ids
        return ids

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens, without the characters that the alphabet lacks."""
        text = "".join(self._tokenizer.id_to_token(token) or UNKNOWN for token in tokens)
        return text.replace(SPACE, " ").replace(STOP, "").replace(UNKNOWN, "")
