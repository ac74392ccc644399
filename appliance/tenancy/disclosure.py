"""The sentence that is spoken before all speech of a tenant, where an operator has set one."""

from __future__ import annotations

import re
import unicodedata

from unidecode import unidecode

from appliance.store.tables import DISCLOSURE_CHARACTERS
from appliance.tenancy.administration import AdministrationError

# Control, format and surrogate characters, those of no meaning, and separators of lines and paragraphs.
REFUSED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
LETTER = re.compile(r"[A-Za-z]")
ENDED = re.compile(r"[.!?]['\")\]]*$")


def checked_disclosure(sentence: str) -> str:
    """A disclosure as it is kept and spoken: stripped, and with a full stop where it has no end.

    It is 1 to 200 characters in one line, without control characters, and with a letter that the model can
    read. Raises AdministrationError ("bad_disclosure"), which does not repeat it.
    """
    text = sentence.strip()
    if any(unicodedata.category(character) in REFUSED for character in text):
        raise _refused("use one line, without control characters")
    # What the model reads: it knows ASCII alone.
    read = unidecode(text).rstrip()
    if not LETTER.search(read):
        raise _refused("use at least one letter, so that it can be spoken; to set none, use --off")
    text = text if ENDED.search(read) else f"{text}."
    if len(text) > DISCLOSURE_CHARACTERS:
        limit = f"{DISCLOSURE_CHARACTERS}, the full stop at its end included"
        raise _refused(f"it has {len(text)} characters; the limit is {limit}")
    return text


def _refused(rule: str) -> AdministrationError:
    return AdministrationError("bad_disclosure", f"disclosure: {rule}")
