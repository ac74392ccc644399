"""What the policy does to a machine: upgrades by label, restarts by unit, and the alarm.

prepare.yml made two signed archives with newer versions of installed packages; the tests run in this order.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testinfra.host import Host

PACKAGES = ("probe-fix", "probe-kept", "probe-plain", "probe-settings")
# As on the image, where /tmp holds no programs.
UPGRADE = (
    "unshare --mount sh -ec 'mount -t tmpfs -o nodev,nosuid,noexec tmpfs /tmp; unattended-upgrade --debug {}'"
)
ALARM = "testudo-image-age"
STATE = f"/var/lib/private/{ALARM}/pending.json"


def versions(host: Host) -> dict[str, str]:
    query = "dpkg-query --show --showformat='${Package} ${Version}\\n' " + " ".join(PACKAGES)
    return dict(line.split() for line in host.check_output(query).splitlines())


def main_pid(host: Host, unit: str) -> str:
    return str(host.check_output(f"systemctl show --property=MainPID --value {unit}"))


def build(host: Host, days_ago: int) -> None:
    """Say in the version file when the image was built."""
    built = datetime.now(UTC) - timedelta(days=days_ago, hours=1)
    facts = json.dumps({"built_at": built.strftime("%Y-%m-%dT%H:%M:%SZ")})
    host.check_output("printf %%s %s > /etc/testudo/version.json", facts)


def look(host: Host) -> tuple[bool, dict[str, str], str]:
    """Start the alarm's unit: whether it is content, the facts of its line, and that line's priority."""
    cursor = host.check_output(
        "journalctl --sync; journalctl --show-cursor --lines=0 | sed -n 's/-- cursor: //p'"
    )
    done = host.run(f"systemctl start {ALARM}")
    host.check_output("journalctl --sync")
    said = host.check_output(f"journalctl --after-cursor='{cursor}' --unit={ALARM} --output=json")
    entries = [json.loads(line) for line in said.splitlines()]
    (entry,) = [one for one in entries if str(one["MESSAGE"]).startswith("code=")]
    return done.rc == 0, dict(word.split("=", 1) for word in entry["MESSAGE"].split()), entry["PRIORITY"]


@pytest.fixture
def clean(host: Host) -> Iterator[None]:
    yield
    host.check_output(f"systemctl reset-failed {ALARM}.service")


def failed(host: Host) -> str:
    return str(host.check_output("systemctl list-units --failed --plain --no-legend"))


def test_a_current_image_is_no_cause_for_alarm(host: Host) -> None:
    build(host, 29)
    well, facts, priority = look(host)
    assert (well, facts["code"], facts["age_days"], priority) == (True, "image_current", "29", "6")
    # Of the security archive alone, that one included which is not installed by itself.
    assert facts["packages"] == "probe-fix,probe-kept,probe-settings"


@pytest.mark.usefixtures("clean")
def test_an_old_image_is(host: Host) -> None:
    build(host, 31)
    well, facts, priority = look(host)
    assert (well, facts["code"], facts["age_days"], priority) == (False, "image_too_old", "31", "4")
    assert f"{ALARM}.service" in failed(host)


@pytest.mark.usefixtures("clean")
def test_an_image_of_unknown_age_is(host: Host) -> None:
    host.check_output("rm /etc/testudo/version.json")
    well, facts, priority = look(host)
    assert (well, facts["code"], priority) == (False, "image_age_unknown", "4")


@pytest.mark.usefixtures("clean")
def test_a_fix_that_waits_for_long_is(host: Host) -> None:
    build(host, 1)
    since = json.loads(host.check_output(f"cat {STATE}"))
    assert set(since) == {"probe-fix", "probe-kept", "probe-settings"}
    since["probe-fix"] -= 8 * 86_400
    host.check_output(f"printf %%s %s > {STATE}", json.dumps(since))
    well, facts, priority = look(host)
    assert (well, facts["code"], facts["pending_days"], priority) == (False, "security_fixes_wait", "8", "4")


def test_a_dry_run_finds_fixes_only(host: Host) -> None:
    said = host.check_output(UPGRADE.format("--dry-run") + " 2>&1")
    applied = {line for line in said.splitlines() if line.startswith("applying set")}
    assert applied == {"applying set ['probe-fix']", "applying set ['probe-settings']"}
    assert set(versions(host).values()) == {"1.0"}


def test_fixes_are_installed_and_services_restarted(host: Host) -> None:
    before = {unit: main_pid(host, unit) for unit in ("probe", "testudo-probe")}
    assert "0" not in before.values()
    host.check_output(UPGRADE.format("") + " 2>&1")
    assert versions(host) == {
        "probe-fix": "1.1",
        "probe-settings": "1.1",
        # Excluded by name, and of an archive that is not asked.
        "probe-kept": "1.0",
        "probe-plain": "1.0",
    }
    # The machine's own settings file stays, and did not hold the fix back.
    assert host.file("/etc/probe.conf").content_string == "whose = ours\n"
    after = {unit: main_pid(host, unit) for unit in before}
    # It may be in the middle of speech.
    assert after["testudo-probe"] == before["testudo-probe"]
    assert after["probe"] not in {"0", before["probe"]}


def test_what_was_not_restarted_is_listed(host: Host) -> None:
    listed = host.check_output("needrestart -b -r l").splitlines()
    assert "NEEDRESTART-SVC: testudo-probe.service" in listed
    assert "NEEDRESTART-SVC: probe.service" not in listed


def test_what_is_installed_waits_no_more(host: Host) -> None:
    well, facts, _ = look(host)
    assert (well, facts["packages"]) == (True, "probe-kept")
