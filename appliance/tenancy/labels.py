"""Names and purposes as callers write them: shown to people, and used for nothing else."""

from __future__ import annotations

import unicodedata

from appliance.tenancy.refusals import Refusal

# Controls, surrogates, private use, unassigned; line and paragraph separators; and format characters, which
# can make one name look like another, but for the two joiners that Persian and Indic names are written with.
REFUSED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
JOINERS = {"\u200c", "\u200d"}
REPLACEMENT = "\ufffd"  # what stands where the text was not UTF-8


def label(text: str, field: str, longest: int) -> str:
    """`text` in Unicode's composed form, without space around it. Raises Refusal (`invalid_field`)."""
    composed = unicodedata.normalize("NFC", text.strip()) if len(text) <= 4 * longest else ""
    if not 1 <= len(composed) <= longest or any(_refused(character) for character in composed):
        rule = f"must have 1 to {longest} characters, none of them a control character"
        raise Refusal("invalid_field", f"{field} {rule}", field=field)
    return composed


def _refused(character: str) -> bool:
    if character == REPLACEMENT:
        return True
    return unicodedata.category(character) in REFUSED and character not in JOINERS
