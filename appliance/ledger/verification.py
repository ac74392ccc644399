"""Finding what is wrong with a ledger, from its bytes alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final

from appliance.ledger.entry import GENESIS, MAX_LINE, Entry
from appliance.ledger.errors import LedgerError
from appliance.ledger.head import PREFIX, Head
from appliance.ledger.signing import SignedDocument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.ledger.signing import PublicKey

MAX_FINDINGS: Final = 100


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `code` is stable; `line` counts from 1, `entry` is a number in the chain."""

    code: str
    message: str
    line: int | None = None
    entry: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What a verification found: `proven` by a signature, consistent in itself, or with `findings`."""

    tenant: str | None
    entries: int
    hash: str
    head: Head | None
    proven: bool
    findings: tuple[Finding, ...]


@dataclass
class Walk:
    """Goes along a chain entry by entry.

    An entry is good if it has the next number, the hash of the entry before and its own. Anything else is at
    least one finding; what follows it only serves to name the fault and not its echoes.
    """

    tenant: str | None = None
    last: int = 0
    hash: str = GENESIS
    findings: list[Finding] = field(default_factory=list)
    marked: int = 0
    marked_hash: str = GENESIS
    """The hash of entry number `marked`, once the walk has passed it."""
    _links: frozenset[str] = frozenset({GENESIS})
    # By the number of a missing entry: the line before which it is missing.
    _gaps: dict[int, int] = field(default_factory=dict)

    def take_line(self, number: int, raw: bytes) -> None:
        """Go over the next line of a file, without its newline."""
        try:
            entry = Entry.parse(raw)
        except LedgerError as error:
            lost = self.last + 1
            told = f"line {number}, where entry {lost} belongs, is not an entry"
            self._find(error.code, told, number, lost)
            self._advance(lost, GENESIS, frozenset())
        else:
            self.take(number, entry)

    def take(self, number: int, entry: Entry) -> None:
        """Go over the next entry, which stands in line `number`."""
        due = self.last + 1
        computed = entry.computed_hash()
        if computed != entry.hash:
            # Its own number may be what was edited: it stands where entry `due` belongs.
            self._find("entry_edited", f"entry {due} was changed: its hash does not fit it", number, due)
            self._advance(due, entry.hash, frozenset({entry.hash, computed}))
            return
        self.tenant = self.tenant or entry.tenant
        found = entry.sequence
        if entry.tenant != self.tenant:
            self._find("foreign_tenant", f"line {number} holds an entry of another tenant", number, found)
            return
        if found < due:
            if self._gaps.pop(found, None) is None:
                self._find("entry_repeated", f"line {number} holds a second entry {found}", number, found)
            else:
                self._find("entry_moved", f"entry {found} stands after entry {self.last}", number, found)
            return
        try:
            entry.event()
        except LedgerError as error:
            self._find(error.code, f"entry {found} holds what its kind may not carry", number, found)
        if found > due:
            self._lose(due, found, number)
        elif self._links and entry.previous not in self._links:
            told = f"entry {found} does not follow what stands before it: one of the two was replaced"
            self._find("link_broken", told, number, found)
        self._advance(found, entry.hash, frozenset({entry.hash}))

    def end(self) -> None:
        """Report the entries that were missing and never came."""
        for entry, line in self._gaps.items():
            self._find("entry_missing", f"entry {entry} is missing before line {line}", line, entry)
        self._gaps.clear()

    @property
    def hopeless(self) -> bool:
        """Whether there is more wrong than is worth listing."""
        return len(self.findings) + len(self._gaps) > MAX_FINDINGS

    def _lose(self, due: int, found: int, line: int) -> None:
        if found - due > MAX_FINDINGS:
            told = f"entries {due} to {found - 1} are missing before line {line}"
            self._find("entry_missing", told, line, due)
        else:
            self._gaps.update(dict.fromkeys(range(due, found), line))

    def _advance(self, sequence: int, last_hash: str, links: frozenset[str]) -> None:
        self.last, self.hash, self._links = sequence, last_hash, links
        if sequence == self.marked:
            self.marked_hash = last_hash

    def _find(self, code: str, message: str, line: int, entry: int) -> None:
        self.findings.append(Finding(code, message, line, entry))


def verify(file: IO[bytes], key: PublicKey | None = None, earlier: Head | None = None) -> Verdict:
    """Verify an export, or a chain's file as the appliance keeps it, which has no head.

    With `key`, the file must end in a head that this key signed. With `earlier`, the head of an earlier
    export whose signature the caller has checked, the chain must still hold what it held then: the only way
    to find a history rewritten by someone who can sign. Reads line by line; no content makes it raise.
    """
    walk = Walk(marked=earlier.entries if earlier else 0)
    heads: list[tuple[int, bytes]] = []
    others: list[Finding] = []
    number = 0
    for number, raw, whole in _lines(file):
        if not whole:
            others.append(Finding("line_torn", f"line {number}, the last, does not end in a newline", number))
        if raw.startswith(PREFIX):
            heads.append((number, raw))
        elif whole:
            walk.take_line(number, raw)
        if walk.hopeless or len(heads) > 1:
            others.append(Finding("stopped", f"nothing was read after line {number}", number))
            break
    walk.end()
    if number == 0:
        others.append(Finding("file_empty", "the file is empty"))
    if heads and heads[0][0] != number:
        others.append(Finding("head_misplaced", "a head stands before the last line", heads[0][0]))
    head, found = _read_head(walk, *heads[-1], key) if heads else (None, [])
    if key and not heads:
        others.append(Finding("head_missing", "there is no signed head: nothing says where this ledger ends"))
    if earlier:
        others.extend(_against_earlier(walk, earlier))
    findings = sorted((*walk.findings, *found, *others), key=lambda finding: finding.line or number + 1)
    tenant = walk.tenant or (head.tenant if head else None)
    proven = bool(key and head and not findings)
    return Verdict(tenant, walk.last, walk.hash, head, proven, tuple(findings))


def _read_head(walk: Walk, line: int, raw: bytes, key: PublicKey | None) -> tuple[Head | None, list[Finding]]:
    head, findings = None, list[Finding]()
    try:
        signed = SignedDocument.parse(raw)
        head = Head.of(signed)
        findings.extend(_against_head(walk, head, line))
        if key:
            signed.check(key)
    except LedgerError as error:
        findings.append(Finding(error.code, f"the head, line {line}: {error}", line))
    return head, findings


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes, bool]]:
    """Number, content, and whether a newline ended it. Of an overlong line only the beginning is kept."""
    number = 0
    while raw := file.readline(MAX_LINE + 2):
        number += 1
        rest = raw
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(1 << 16)
        yield number, raw.removesuffix(b"\n"), rest.endswith(b"\n")


def _against_head(walk: Walk, head: Head, line: int) -> Iterator[Finding]:
    if walk.tenant and head.tenant != walk.tenant:
        yield Finding("foreign_tenant", "the head is that of another tenant's ledger", line)
    elif walk.last < head.entries:
        missing = (
            f"the end is missing: the head counts {head.entries} entries, the file ends with {walk.last}"
        )
        yield Finding("truncated", missing, line, walk.last + 1)
    elif walk.last > head.entries:
        more = f"the head counts {head.entries} entries, the file goes on to {walk.last}"
        yield Finding("extended", more, line, head.entries + 1)
    elif walk.hash != head.hash and not walk.findings:
        yield Finding(
            "head_mismatch", "the chain does not end in the hash that the head names", line, walk.last
        )


def _against_earlier(walk: Walk, earlier: Head) -> Iterator[Finding]:
    if walk.tenant and earlier.tenant != walk.tenant:
        yield Finding("foreign_tenant", "the earlier head is that of another tenant's ledger")
    elif walk.last < earlier.entries:
        shorter = f"there were {earlier.entries} entries at the earlier head, now there are {walk.last}"
        yield Finding("history_rewritten", shorter, entry=walk.last + 1)
    elif walk.marked_hash != earlier.hash:
        told = f"entry {earlier.entries} is not the one of the earlier head: history was rewritten"
        yield Finding("history_rewritten", told, entry=earlier.entries)
