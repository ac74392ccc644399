#!/usr/bin/python3
"""Tell whether this machine's image is too old, or a security fix has waited for too long.

    testudo-image-age VERSION_FILE STATE_FOLDER MAX_IMAGE_AGE_DAYS MAX_PENDING_DAYS

Says one line with a stable code, for the journal (its prefix is the priority, see sd-daemon(3)), and exits
with 1 where something has to be done. Asks no network: apt's timers have fetched the lists that it reads.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from datetime import datetime
from pathlib import Path

import apt

UPGRADER = "/usr/bin/unattended-upgrade"
DAY = 86_400.0
WARNING, INFO = 4, 6


def image_age(version: Path, now: float) -> float | None:
    """Days since the image was built; None where its version file does not tell."""
    try:
        built = datetime.fromisoformat(json.loads(version.read_text())["built_at"].replace("Z", "+00:00"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return (now - built.timestamp()) / DAY


def waiting() -> list[str]:
    """Installed packages with a newer version from an origin that the machine may upgrade from by itself.

    Asks Debian's upgrader what that is, so that alarm and upgrades follow one policy.
    """
    policy = runpy.run_path(UPGRADER)
    allowed = policy["get_allowed_origins"]()
    return sorted(
        package.name
        for package in apt.Cache()
        if package.installed is not None
        and any(
            version > package.installed and policy["is_in_allowed_origin"](version, allowed)
            for version in package.versions
        )
    )


def remember(state: Path, names: list[str], now: float) -> float:
    """Keep since when each package waits; returns the days of the one that has waited longest."""
    file = state / "pending.json"
    try:
        known: dict[str, float] = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    since = {name: known.get(name, now) for name in names}
    file.write_text(json.dumps(since))
    return max(((now - start) / DAY for start in since.values()), default=0.0)


def main() -> int:
    """Look at both, say what there is to say."""
    version, state = map(Path, sys.argv[1:3])
    max_age, max_pending = map(int, sys.argv[3:5])
    now = time.time()
    age = image_age(version, now)
    names = waiting()
    waited = remember(state, names, now)
    if age is None:
        code = "image_age_unknown"
    elif age > max_age:
        code = "image_too_old"
    elif waited > max_pending:
        code = "security_fixes_wait"
    else:
        code = "image_current"
    facts = {
        "code": code,
        "age_days": "unknown" if age is None else int(age),
        "max_age_days": max_age,
        "pending": len(names),
        "pending_days": int(waited),
        "max_pending_days": max_pending,
        "packages": ",".join(names) or "none",
    }
    well = code == "image_current"
    print(f"<{INFO if well else WARNING}>" + " ".join(f"{name}={value}" for name, value in facts.items()))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
