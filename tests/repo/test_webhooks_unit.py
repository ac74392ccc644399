"""The unit of the webhooks' process, as the role's templates make it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROLE = Path(__file__).resolve().parents[2] / "roles/voice"
UNITS = ("testudo-engine", "testudo-api", "testudo-jobs", "testudo-webhooks", "testudo-retention")


def variables() -> dict[str, Any]:
    files = (ROLE / "defaults/main.yml", ROLE / "vars/main.yml")
    known = {name: value for file in files for name, value in yaml.safe_load(file.read_text()).items()}
    return {**known, "ansible_managed": "made by a test", "__voice_venv": "/opt/testudo/venv"}


def made(unit: str, **changes: Any) -> str:
    loader = jinja2.FileSystemLoader(ROLE / "templates")
    # As Ansible sets it up.
    environment = jinja2.Environment(  # noqa: S701 - no HTML
        loader=loader, trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template(f"etc/systemd/system/{unit}.service.j2")
    return template.render({**variables(), **changes})


def lines(unit: str, **changes: Any) -> list[str]:
    return made(unit, **changes).splitlines()


def test_the_sandbox_is_that_of_jobs_but_for_the_network() -> None:
    start = "# The sandbox that both services share"
    jobs, webhooks = (
        set(made(unit).split(start)[1].splitlines()) for unit in ("testudo-jobs", "testudo-webhooks")
    )
    closed = {"PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX", "IPAddressDeny=any"}
    opened = {
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "IPAddressDeny=link-local multicast fd00:ec2::/32",
        "SocketBindDeny=any",
    }
    assert {line for line in jobs - webhooks if not line.startswith("#")} == closed
    assert {line for line in webhooks - jobs if not line.startswith("#")} == opened


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != "testudo-webhooks"])
def test_no_other_unit_has_a_network(unit: str) -> None:
    assert {"PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX", "IPAddressDeny=any"} <= set(lines(unit))


def test_it_has_neither_the_engine_nor_the_keys_of_manifests() -> None:
    unit = lines("testudo-webhooks")
    assert not [line for line in unit if line.startswith("SupplementaryGroups")]
    assert not [line for line in unit if "c2pa" in line.lower()]
    (hidden,) = (line for line in unit if line.startswith("InaccessiblePaths="))
    assert {"-/run/testudo-engine", "-/run/testudo-api"} <= set(
        hidden.removeprefix("InaccessiblePaths=").split()
    )


def test_settings_reach_it() -> None:
    settings = {"ALLOW_NETWORKS": "10.20.0.0/16 10.30.0.0/16", "CA_FILE": "/etc/ssl/private-ca.pem"}
    unit = lines("testudo-webhooks", voice_webhooks_settings=settings)
    assert 'Environment="TESTUDO_WEBHOOKS_ALLOW_NETWORKS=10.20.0.0/16 10.30.0.0/16"' in unit
    assert 'Environment="TESTUDO_WEBHOOKS_CA_FILE=/etc/ssl/private-ca.pem"' in unit


@pytest.mark.parametrize(("wanted", "started"), [(False, False), (True, True)])
def test_it_is_defined_always_and_started_only_where_that_is_said(wanted: bool, started: bool) -> None:
    known = variables()
    assert known["voice_webhooks"] is False
    assert "testudo-webhooks.service" in known["__voice_units"]
    template = jinja2.Template(known["__voice_started"])
    assert ("testudo-webhooks.service" in template.render({**known, "voice_webhooks": wanted})) is started
