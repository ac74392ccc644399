"""Role voice: the installation is read-only, and the units are as closed as they say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from .conftest import CREDENTIALS, properties

if TYPE_CHECKING:
    from testinfra.host import Host

UNITS = ("testudo-engine", "testudo-api", "testudo-credentials")
SERVICES = ("testudo-engine", "testudo-api")
PYTHON = "/opt/testudo/venv/bin/python"

# Asks the API on its Unix socket, as nginx does.
SPEAK = """
import http.client, json, socket, sys
class Socket(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX); self.sock.connect("/run/testudo-api/api.sock")
key = open(sys.argv[1] + "/admin.key").read().strip()
connection = Socket("localhost", timeout=120)
body = {"model": "tortoise-tiny", "voice": "demo", "input": "Shields are locked.", "response_format": "pcm"}
connection.request("POST", "/v1/audio/speech", json.dumps(body), {"Authorization": "Bearer " + key,
                   "Content-Type": "application/json"})
answer = connection.getresponse()
print(json.dumps([answer.status, len(answer.read())]))
"""


def test_installation_belongs_to_root_and_is_compiled(host: Host) -> None:
    assert host.check_output("find /opt/testudo \\( -not -user root -o -not -type l -perm /022 \\)") == ""
    package = host.check_output(f"{PYTHON} -Ic %s", "import appliance; print(appliance.__path__[0])")
    sources, compiled = (
        int(host.check_output(f"find {package} -name '*.{suffix}' | wc --lines")) for suffix in ("py", "pyc")
    )
    assert compiled >= sources > 20


def test_installed_dependencies_agree(host: Host) -> None:
    assert host.check_output(f"{PYTHON} -m pip check") == "No broken requirements found."


@pytest.mark.parametrize("user", SERVICES)
def test_users_cannot_log_in(host: Host, user: str) -> None:
    account = host.user(user)
    assert (account.shell, account.home, account.gid != 0) == ("/usr/sbin/nologin", "/nonexistent", True)
    assert account.uid < 1000
    assert account.groups == [user]


def test_units_are_well_formed_and_start_at_boot(host: Host) -> None:
    paths = " ".join(f"/etc/systemd/system/{unit}.service" for unit in UNITS)
    verdict = host.run(f"systemd-analyze verify {paths}")
    assert "testudo-" not in verdict.stderr, verdict.stderr
    assert all(host.service(unit).is_enabled for unit in UNITS)


@pytest.mark.parametrize("unit", UNITS)
def test_exposure_is_low(host: Host, unit: str) -> None:
    """The promise is 2.0; the scale of --threshold is tenths."""
    verdict = host.run(
        f"systemd-analyze security --offline=yes --threshold=12 /etc/systemd/system/{unit}.service"
    )
    assert verdict.rc == 0, verdict.stdout


def test_exposure_is_measured(host: Host) -> None:
    """The verdict above would be worth nothing if every unit passed."""
    assert host.run(
        "systemd-analyze security --offline=yes --threshold=12 /lib/systemd/system/ssh.service"
    ).rc


@pytest.mark.running
@pytest.mark.services
@pytest.mark.parametrize("unit", UNITS)
def test_units_are_active(host: Host, unit: str) -> None:
    assert host.service(unit).is_running


@pytest.mark.running
@pytest.mark.services
@pytest.mark.parametrize("unit", SERVICES)
def test_process_is_in_the_sandbox(host: Host, unit: str) -> None:
    pid = properties(host, unit, "MainPID")["MainPID"]
    status = dict(
        line.split(":\t", 1)
        for line in host.check_output(f"cat /proc/{pid}/status").splitlines()
        if ":\t" in line
    )
    assert {status[name].strip() for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    uid = str(host.user(unit).uid)
    assert set(status["Uid"].split()) == {uid}
    for namespace in ("net", "mnt"):
        own, first = (host.check_output(f"readlink /proc/{one}/ns/{namespace}") for one in (pid, 1))
        assert own != first, namespace
    interfaces = host.check_output(f"nsenter --target {pid} --net cat /proc/self/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    limits = host.check_output(f"grep 'Max core' /proc/{pid}/limits").split()
    assert limits[4:6] == ["0", "0"]


@pytest.mark.running
@pytest.mark.services
@pytest.mark.parametrize("unit", SERVICES)
def test_process_sees_neither_credentials_nor_homes_nor_others(host: Host, unit: str) -> None:
    """As the process's own user in its own namespaces: file modes alone would hide less."""
    pid = properties(host, unit, "MainPID")["MainPID"]

    def inside(command: str) -> int:
        return int(host.run(f"nsenter --target {pid} --mount --net -- {command}").rc)

    assert inside("test -e /opt/testudo/venv/bin/python") == 0
    assert inside(f"test -e {CREDENTIALS}/keyring.json") != 0
    assert inside("touch /opt/testudo/probe") != 0
    assert inside("touch /etc/probe /var/probe") != 0
    assert inside("test -e /dev/kmsg") != 0
    user = f"setpriv --reuid {unit} --regid {unit} --clear-groups"
    assert inside(f"{user} test -e /proc/1/status") != 0


@pytest.mark.running
@pytest.mark.services
def test_engine_holds_no_credential_and_the_api_not_the_admin_key(host: Host) -> None:
    assert not host.file("/run/credentials/testudo-engine.service").exists
    pid = properties(host, "testudo-api", "MainPID")["MainPID"]
    names = host.check_output(f"nsenter --target {pid} --mount ls /run/credentials/testudo-api.service")
    assert names.split() == ["keyring.json", "pepper"]


@pytest.mark.running
@pytest.mark.services
def test_sockets_are_for_their_users_and_groups(host: Host) -> None:
    modes = host.check_output(
        "stat --format='%A %U %G' /run/testudo-engine /run/testudo-engine/engine.sock"
        " /run/testudo-api /run/testudo-api/api.sock"
    ).splitlines()
    assert modes == [
        "drwxr-x--- testudo-engine testudo-engine",
        "srw-rw---- testudo-engine testudo-engine",
        "drwxr-x--- testudo-api testudo-api",
        "srwxrwx--- testudo-api testudo-api",
    ]


@pytest.mark.running
@pytest.mark.services
def test_admin_key_is_for_root_only(host: Host) -> None:
    modes = host.check_output(f"stat --format='%n %a %U %G' {CREDENTIALS} {CREDENTIALS}/*").splitlines()
    assert modes == [
        f"{CREDENTIALS} 700 root root",
        f"{CREDENTIALS}/admin.key 400 root root",
        f"{CREDENTIALS}/keyring.json 600 root root",
        f"{CREDENTIALS}/pepper 400 root root",
    ]
    assert host.run(f"runuser -u testudo-api -- cat {CREDENTIALS}/admin.key").rc != 0


@pytest.mark.running
@pytest.mark.services
def test_api_speaks_on_its_socket(host: Host) -> None:
    status, size = json.loads(host.check_output(f"{PYTHON} -Ic %s {CREDENTIALS}", SPEAK))
    assert status == 200
    # Half a second of 16-bit samples at 24 kHz.
    assert size > 24_000
