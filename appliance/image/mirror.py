"""Where this host gets Debian from, for trees that are built on it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.image.steps import capture

RELEASE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
OFFICIAL_ARCHIVE = "http://deb.debian.org/debian"
OFFICIAL_SECURITY = "http://deb.debian.org/debian-security"


@dataclass(frozen=True)
class Mirror:
    """Addresses of the archive and of the security archive, and the proxy on the way (or none)."""

    archive: str
    security: str
    proxy: str | None

    def sources(self) -> str:
        """Return the lines of a sources.list for the release with its updates and security fixes."""
        suites = (
            (self.archive, RELEASE),
            (self.archive, f"{RELEASE}-updates"),
            (self.security, f"{RELEASE}-security"),
        )
        return "".join(f"deb [signed-by={KEYRING}] {address} {suite} main\n" for address, suite in suites)


OFFICIAL = Mirror(OFFICIAL_ARCHIVE, OFFICIAL_SECURITY, None)


def of_host() -> Mirror:
    """Read this host's apt configuration; what it does not say is Debian's own address.

    Raises:
        StepError: apt's configuration cannot be read.
    """
    listed = capture(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"]
    )
    found = dict(line.split()[::-1] for line in listed.splitlines())
    codenames = "bookworm|trixie"
    archive = next((uri for suite, uri in found.items() if re.fullmatch(codenames, suite)), OFFICIAL_ARCHIVE)
    security = next(
        (uri for suite, uri in found.items() if re.fullmatch(f"({codenames})-security", suite)),
        OFFICIAL_SECURITY,
    )
    proxy = capture(["apt-config", "dump", "--format=%v", "Acquire::http::Proxy"]).strip()
    return Mirror(archive.rstrip("/"), security.rstrip("/"), proxy or None)
