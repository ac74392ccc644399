"""Prove the finished disk: boot it, run the image suite against it over ssh, let it speak through TLS."""

from __future__ import annotations

import json
import socket
import sys
import wave
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from appliance.image.accelerator import choose
from appliance.image.steps import StepError, capture

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.image.accelerator import Accelerator
    from appliance.image.layout import Layout
    from appliance.image.steps import Step

LOGIN = "admin"
SUITE_SECONDS = 900.0


@dataclass(frozen=True)
class Machine:
    """How the machine under test is started and reached from this host."""

    accelerator: Accelerator
    ssh_port: int
    https_port: int


@dataclass(frozen=True)
class Verdict:
    """What the suite said: tests passed and left out, and seconds of speech in build/hello.wav."""

    passed: int
    skipped: int
    hello_seconds: float


def scratch(layout: Layout) -> Path:
    """Folder of what only one verification needs; Packer's variables name it too."""
    return layout.temporary / "verify"


def prepare(layout: Layout) -> Machine:
    """Make a throw-away login key, the cloud-init seed that carries it and an ssh configuration.

    Raises:
        StepError: a tool is missing or failed.
    """
    folder = scratch(layout)
    folder.mkdir(parents=True)
    capture(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "testudo-verify", "-f", folder / "key"])
    public = (folder / "key.pub").read_text().strip()
    (folder / "user-data").write_text(f"#cloud-config\nssh_authorized_keys:\n  - {public}\n")
    (folder / "meta-data").write_text("instance-id: testudo-verify\nlocal-hostname: testudo\n")
    seed = folder / "seed.img"
    capture(["mformat", "-C", "-i", seed, "-f", "1440", "-v", "CIDATA", "::"])
    capture(["mcopy", "-i", seed, folder / "user-data", folder / "meta-data", "::"])
    ssh_port, https_port = _free_ports(2)
    (folder / "ssh_config").write_text(
        f"Host testudo\n  HostName 127.0.0.1\n  Port {ssh_port}\n  User {LOGIN}\n"
        f"  IdentityFile {folder}/key\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder}/known_hosts\n  StrictHostKeyChecking accept-new\n"
        # A short name: a socket's path has at most 107 characters, and ssh adds 17 while it makes one.
        f"  ControlMaster auto\n  ControlPath {layout.temporary}/m\n  ControlPersist 60\n"
    )
    return Machine(choose(layout), ssh_port, https_port)


def run_suite(layout: Layout, step: Step, https_port: int) -> None:
    """Run tests/image against the booted machine and keep the verdict in build/verdict.json.

    Raises:
        StepError: a test failed, or the machine's speech is no speech.
    """
    folder = scratch(layout)
    hello = layout.build / "hello.wav"
    results = folder / "results.xml"
    # ssh answers before cloud-init is through; its exit status is the suite's matter.
    step.run(["ssh", "-F", folder / "ssh_config", "testudo", "cloud-init status --wait || true"], timeout=300)
    step.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-v",
            "--durations=20",
            "--color=no",
            f"--junitxml={results}",
            "--hosts=ssh://testudo",
            f"--ssh-config={folder}/ssh_config",
            "--sudo",
            f"--base-url=https://localhost:{https_port}",
            f"--hello={hello}",
            "tests/image",
        ],
        cwd=layout.root,
        timeout=SUITE_SECONDS,
        shown=r"tests/image/.*(?=\[ *\d+%\])",
    )
    totals = ET.parse(results).getroot().find("testsuite")  # noqa: S314 - pytest just wrote it
    if totals is None:
        raise StepError(f"{results} names no test suite")
    count = {name: int(totals.get(name, "0")) for name in ("tests", "skipped", "failures", "errors")}
    passed = count["tests"] - count["skipped"] - count["failures"] - count["errors"]
    verdict = Verdict(passed, count["skipped"], _seconds_of_speech(hello))
    (layout.build / "verdict.json").write_text(json.dumps(asdict(verdict)))
    step.note = f"({passed} passed)"


def read_verdict(layout: Layout) -> Verdict:
    """Return what the last verification found.

    Raises:
        StepError: there was none.
    """
    try:
        return Verdict(**json.loads((layout.build / "verdict.json").read_text()))
    except FileNotFoundError as error:
        raise StepError("the image was not verified: Packer's source qemu.verify did not run") from error


def _seconds_of_speech(path: Path) -> float:
    """Return the duration of a WAV file.

    Raises:
        StepError: it cannot be read, is too short or too long for one sentence, or silent.
    """
    try:
        with wave.open(str(path)) as clip:
            samples = memoryview(clip.readframes(clip.getnframes())).cast("h")
            seconds = float(clip.getnframes() / clip.getframerate())
    except (OSError, EOFError, wave.Error) as error:
        raise StepError(f"{path} cannot be read: {error}") from error
    if not 0.5 < seconds < 60 or max(map(abs, samples)) < 100:
        raise StepError(f"{path} holds {seconds:.2f} s and is no spoken sentence")
    return round(seconds, 2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
