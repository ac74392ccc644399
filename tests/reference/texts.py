"""Texts whose tokens are compared, and those that are read otherwise than upstream on purpose."""

from __future__ import annotations

import random

WRITTEN = (
    "The tortoise formation keeps its shield up.",
    "Hello, World! Isn't it fine; or: is it (not)?",
    "In 1999, 1900, 1905, 2000, 2007, 2010, 2024, 3000 and 1000.",
    "The 1st, 2nd, 3rd, 4th, 11th, 22nd and 103rd.",
    "$1, $2, $0.50, $5.01, $1,000, $1,234,567.89 and $0.",
    "3.14, 0.5, 10.10 and 1,234.5",
    "Mr. and Mrs. Smith met Drs. No and Co. at Ft. Worth, St. James St., Jr., Esq.",
    "Maj. Tom, Gen. Lee, Rev. Green, Lt. Dan, Hon. Sgt. Capt. Ltd. Col.",
    "“Café” — naïve façade… Zürich, Москва, 北京, ½ ™",
    "A heading\n\nand a paragraph\twith  spaces.",
    "UPPER lower MiXeD",
    "x" * 60,
    "the quick brown fox jumps over the lazy dog " * 6 + "end",
    "e.g. the U.S. and J. R. R. Tolkien, i.e. him.",
    "1 12 123 1234 12345 123456 1234567 1234567890",
    "[I am very sad] but [STOP] is no token [SPACE]",
    "emoji 😀 in the middle",
    "it's 5 o'clock - well, 5:30",
    "100% of 7/8 & #1 @ home + more = ?",
)

_PARTS = (
    *("the", "Shield", "tortoise", "Dr.", "Mrs.", "St.", "co.", "ft.", "isn't", "o'clock", "naïve", "Ünder"),
    *("1", "17", "1,000", "1984", "2003", "3.5", "4th", "23rd", "$5", "$3.20", "$1,200", "600", "12345"),
    *("—", "-", ";", "...", "(so)", "e.g.", "A.B.", "wait!", "no?", "yes,", "w/", "&", "50%", "ß", "é"),
)


def _composed(count: int) -> list[str]:
    chooser = random.Random(20_261_124)  # noqa: S311 - texts, not secrets
    return [" ".join(chooser.choices(_PARTS, k=chooser.randint(1, 14))) for _ in range(count)]


ALIKE = (*WRITTEN, *_composed(300))

# Upstream's reading of these is a slip: how ours reads them.
DIFFERENT = {
    "It was $1.5 then.": "it was one dollar, fifty cents then.",
    "It was £20 then.": "it was twenty pounds then.",
    "It was €3 then.": "it was three euros then.",
    "  edges  ": "edges",
    'he said " no " twice': "he said no twice",
}
