"""Role voice: the installation is read-only, and the units are as closed as they say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from .conftest import CREDENTIALS, properties

if TYPE_CHECKING:
    from testinfra.host import Host

UNITS = ("testudo-credentials", "testudo-setup", "testudo-engine", "testudo-api", "testudo-jobs")
USERS = ("testudo-engine", "testudo-api")
SERVICES = ("testudo-engine", "testudo-api", "testudo-jobs")
# The one with a network: defined always, started only where a machine's variables say so.
WEBHOOKS = "testudo-webhooks"
TRIGGERS = ("testudo-decoder.socket", "testudo-retention.timer")
PYTHON = "/opt/testudo/venv/bin/python"
DATA = "/var/lib/testudo/data"
KEYS = ("admin.key", "c2pa.key", "keyring.json", "pepper", "root.key", "signing.key")
SEALING = ["pepper", "root.key", "signing.key"]
ORIGIN = ["c2pa-root.pem", "c2pa.key", "c2pa.pem"]
DECODER = "/run/testudo-decoder.sock"

# Has the decoder's service describe and decode a second of silence, and prints what comes of it.
DECODE = """
import io, wave
from dataclasses import replace
from appliance.tenancy.intake import LIMITS, DecoderSocket, IntakeError, decode
file = io.BytesIO()
with wave.open(file, "wb") as writer:
    writer.setnchannels(1); writer.setsampwidth(2); writer.setframerate(24000)
    writer.writeframes(bytes(48000))
try:
    clip = decode(file.getvalue(), DecoderSocket(limits=replace(LIMITS, queue_seconds=PATIENCE)))
    print(len(clip.samples), clip.source.codec)
except IntakeError as error:
    print(error.code)
"""
# Connects to the decoder and says nothing.
HOLD = """
import socket
connection = socket.socket(socket.AF_UNIX)
connection.connect("/run/testudo-decoder.sock")
while connection.recv(1):
    pass
"""
# Looks at a decoder from outside and from within, as root, while it is stopped.
INSPECT = """
runuser -u testudo-api -- $PYTHON -Ic "$1" &
for try in $(seq 600); do
    unit=$(systemctl list-units --no-legend --plain --state=running 'testudo-decoder@*' | cut -d' ' -f1)
    [ -z "$unit" ] || break
    sleep 0.1
done
pid=$(systemctl show --property=MainPID --value "$unit")
kill -STOP "$pid"
cat "/proc/$pid/status"
echo "NetDev: $(nsenter --target "$pid" --net tail -n +3 /proc/self/net/dev | cut -d: -f1)"
inside() {
    nsenter --target "$pid" --mount -- "$@" > /dev/null 2>&1
    result=$?
    echo "$*: $result"
}
inside test -e $CREDENTIALS
inside test -e $DATA
inside test -e /etc/testudo/testudo.env
inside test -e /run/testudo-api/api.sock
inside touch /etc/probe
inside touch /opt/probe
inside test -e /usr/bin/ffmpeg
kill -KILL "$pid"
wait
"""
# What a command of `testudo` finds around it.
LOOK = """
import os, pwd
from pathlib import Path
def writable(path):
    try:
        (Path(path) / "probe").touch(); (Path(path) / "probe").unlink(); return True
    except OSError:
        return False
print(pwd.getpwuid(os.getuid()).pw_name)
print(*sorted(os.listdir(os.environ["CREDENTIALS_DIRECTORY"])))
keys = ("PEPPER", "ROOT_KEY", "SIGNING_KEY")
print(*[name for name in keys if Path(os.environ["TESTUDO_" + name]).stat().st_size])
print(*[path for path in ("/var/lib/testudo/data", "/etc", "/opt/testudo", "/var/lib") if writable(path)])
interfaces = [line.split(":")[0].strip() for line in open("/proc/self/net/dev").readlines()[2:]]
print(os.path.exists("/var/lib/testudo/credentials"), *interfaces)
"""

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


@pytest.mark.parametrize("user", USERS)
def test_users_cannot_log_in(host: Host, user: str) -> None:
    account = host.user(user)
    assert (account.shell, account.home, account.gid != 0) == ("/usr/sbin/nologin", "/nonexistent", True)
    assert account.uid < 1000
    assert account.groups == [user]


def test_units_are_well_formed_and_start_at_boot(host: Host) -> None:
    names = [f"{unit}.service" for unit in (*UNITS, "testudo-retention", "testudo-decoder@", WEBHOOKS)]
    names += TRIGGERS
    paths = " ".join(f"/etc/systemd/system/{name}" for name in names)
    verdict = host.run(f"systemd-analyze verify {paths}")
    assert "testudo-" not in verdict.stderr, verdict.stderr
    assert all(host.service(unit).is_enabled for unit in (*UNITS, *TRIGGERS))


def test_what_needs_the_network_is_off(host: Host) -> None:
    assert not host.service(WEBHOOKS).is_enabled
    text = host.file(f"/etc/systemd/system/{WEBHOOKS}.service").content_string
    assert "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\nIPAddressDeny=link-local" in text
    assert "testudo-engine\n" not in text


@pytest.mark.running
@pytest.mark.services
@pytest.mark.parametrize("unit", [*UNITS, *TRIGGERS])
def test_units_are_active(host: Host, unit: str) -> None:
    assert host.service(unit).is_running


@pytest.mark.running
@pytest.mark.services
def test_what_needs_the_network_does_not_run(host: Host) -> None:
    assert not host.service(WEBHOOKS).is_running


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
    uid = str(host.user(properties(host, unit, "User")["User"]).uid)
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
    name = properties(host, unit, "User")["User"]
    user = f"setpriv --reuid {name} --regid {name} --clear-groups"
    assert inside(f"{user} test -e /proc/1/status") != 0


@pytest.mark.running
@pytest.mark.services
def test_engine_holds_no_credential_and_nobody_the_admin_key(host: Host) -> None:
    assert not host.file("/run/credentials/testudo-engine.service").exists
    for unit in ("testudo-api", "testudo-jobs"):
        pid = properties(host, unit, "MainPID")["MainPID"]
        names = host.check_output(f"nsenter --target {pid} --mount ls /run/credentials/{unit}.service")
        assert names.split() == [*ORIGIN, *SEALING]


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
        f"{CREDENTIALS}/c2pa-root.pem 600 root root",
        f"{CREDENTIALS}/c2pa.key 600 root root",
        f"{CREDENTIALS}/c2pa.pem 600 root root",
        f"{CREDENTIALS}/keyring.json 600 root root",
        f"{CREDENTIALS}/pepper 400 root root",
        f"{CREDENTIALS}/root.key 600 root root",
        f"{CREDENTIALS}/signing.key 600 root root",
    ]


@pytest.mark.running
@pytest.mark.services
@pytest.mark.parametrize("key", KEYS)
def test_keys_are_out_of_reach_of_the_user_who_is_given_them(host: Host, key: str) -> None:
    """Outside a unit, testudo-api reads neither the files nor the credentials of a unit that runs."""
    assert host.run(f"runuser -u testudo-api -- cat {CREDENTIALS}/{key}").rc != 0
    assert host.run(f"runuser -u testudo-engine -- cat /run/credentials/testudo-api.service/{key}").rc != 0


@pytest.mark.running
@pytest.mark.services
def test_state_is_for_the_api_only(host: Host) -> None:
    assert host.check_output(f"stat --format='%a %U %G' {DATA}") == "700 testudo-api testudo-api"
    settings = host.check_output("stat --format='%a %U' /etc/testudo/testudo.env")
    assert settings == "644 root"
    pids = {unit: properties(host, unit, "MainPID")["MainPID"] for unit in USERS}
    as_api = "setpriv --reuid testudo-api --regid testudo-api --clear-groups"

    def inside(unit: str, command: str) -> int:
        return int(host.run(f"nsenter --target {pids[unit]} --mount -- {command}").rc)

    assert inside("testudo-api", f"{as_api} sh -c 'touch {DATA}/probe && rm {DATA}/probe'") == 0
    assert inside("testudo-api", f"{as_api} touch /var/lib/testudo/probe") != 0
    assert inside("testudo-engine", f"test -e {DATA}") != 0


@pytest.mark.running
@pytest.mark.services
def test_uploads_are_decoded_for_the_api_and_for_nobody_else(host: Host) -> None:
    """Not even for root, whom no mode of the socket keeps out."""
    decode = f"{PYTHON} -Ic %s"
    assert host.check_output(f"stat --format='%a %U %G' {DECODER}") == "660 root testudo-api"
    as_api = host.run(f"runuser -u testudo-api -- {decode}", DECODE.replace("PATIENCE", "30.0"))
    assert as_api.stdout.strip() == "24000 pcm_s16le", as_api.stderr
    impatient = DECODE.replace("PATIENCE", "1.0")
    assert host.check_output(decode, impatient) == "decoder_busy"
    assert host.check_output(f"runuser -u testudo-engine -- {decode}", impatient) == "decoder_unavailable"


@pytest.mark.running
@pytest.mark.services
def test_a_decoder_reaches_neither_network_nor_files_nor_others(host: Host) -> None:
    script = INSPECT.replace("$PYTHON", PYTHON).replace("$CREDENTIALS", CREDENTIALS).replace("$DATA", DATA)
    held = host.run("sh -c %s - %s", script, HOLD)
    facts = dict(
        (part.strip() for part in line.split(":", 1)) for line in held.stdout.splitlines() if ":" in line
    )
    assert "Uid" in facts, held
    users = {str(host.user(name).uid) for name in ("root", "testudo-api", "testudo-engine")}
    assert not users & set(facts["Uid"].split())
    assert {facts[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (facts["NoNewPrivs"], facts["Seccomp"], facts["NetDev"]) == ("1", "2", "lo")
    results = {name: result for name, result in facts.items() if name.startswith(("test ", "touch "))}
    assert results.pop("test -e /usr/bin/ffmpeg") == "0"
    assert len(results) == 6
    assert "0" not in results.values(), results


@pytest.mark.running
@pytest.mark.services
def test_commands_of_root_run_as_the_api_in_a_sandbox(host: Host) -> None:
    start = "systemd-run --pipe --wait --collect --quiet --unit=testudo-cli-probe --uid=testudo-api"
    user, credentials, keys, writable, rest = host.check_output(f"{start} {PYTHON} -Ic %s", LOOK).splitlines()
    assert user == "testudo-api"
    assert credentials == "pepper root.key signing.key"
    assert keys == "PEPPER ROOT_KEY SIGNING_KEY"
    assert writable == DATA
    assert rest == "False lo"


@pytest.mark.running
@pytest.mark.services
def test_the_command_of_root(host: Host) -> None:
    assert host.check_output("testudo version") == host.check_output("/opt/testudo/venv/bin/testudo version")
    assert "Usage" in host.check_output("testudo image --help")
    # The exit status and the words of what runs in the sandbox come through.
    failed = host.run("testudo no-such-command")
    assert (failed.rc, "No such command" in failed.stderr) == (2, True), failed
    assert host.run("runuser -u testudo-engine -- testudo image --help").rc == 1


@pytest.mark.running
@pytest.mark.services
def test_api_speaks_on_its_socket(host: Host) -> None:
    status, size = json.loads(host.check_output(f"{PYTHON} -Ic %s {CREDENTIALS}", SPEAK))
    assert status == 200
    # Half a second of 16-bit samples at 24 kHz.
    assert size > 24_000
