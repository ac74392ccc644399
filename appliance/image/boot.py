"""Prove the finished disk: boot it, run the image suite against it over ssh, let it speak through TLS."""

from __future__ import annotations

import json
import socket
import sys
import wave
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from appliance.image.accelerator import choose
from appliance.image.steps import StepError, capture, step

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.image.accelerator import Accelerator
    from appliance.image.layout import Layout

LOGIN = "admin"
BOOT_SECONDS = 300.0
SUITE_SECONDS = 1200.0
# The suite's strands by pytest's marker expressions.
STRANDS = {"services": "services and not commands", "system": "not services"}


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


def run_suite(layout: Layout, https_port: int) -> None:
    """Run tests/image against the booted machine and keep the verdict in build/verdict.json.

    What talks to the services, loads or kills them and what looks at the system run side by side, since under
    software emulation each waits much of the time for one of the machine's processors.

    Raises:
        StepError: a test failed, or the machine's speech is no speech.
    """
    settle(layout)
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(_run_strand, layout, strand, https_port) for strand in STRANDS]
    counts = [run.result() for run in runs]
    seconds = _finish_speech(layout.build / "hello.wav")
    verdict = Verdict(sum(count[0] for count in counts), sum(count[1] for count in counts), seconds)
    (layout.build / "verdict.json").write_text(json.dumps(asdict(verdict)))


def settle(layout: Layout) -> None:
    """Wait until the machine has booted to the end.

    Raises:
        StepError: it did not in time.
    """
    with step(layout, "settle", "the rest of the boot") as running:
        # ssh answers long before; how cloud-init ended is the suite's matter.
        wait = "cloud-init status --wait || true"
        running.run(["ssh", "-F", scratch(layout) / "ssh_config", "testudo", wait], timeout=BOOT_SECONDS)


def _run_strand(layout: Layout, name: str, https_port: int) -> tuple[int, int]:
    """Run one strand of the suite; returns how many tests passed and how many were skipped."""
    folder = scratch(layout)
    results = folder / f"{name}.xml"
    options = ["-p", "no:cacheprovider", "-v", "--color=no", "--durations=10", f"--junitxml={results}"]
    options += ["--hosts=ssh://testudo", f"--ssh-config={folder}/ssh_config", "--sudo"]
    options += ["-m", STRANDS[name]]
    options += [f"--base-url=https://localhost:{https_port}", f"--hello={layout.build}/hello.wav"]
    with step(layout, f"suite-{name}", "tests/image over ssh and TLS") as running:
        running.run(
            [sys.executable, "-m", "pytest", *options, "tests/image"],
            cwd=layout.root,
            timeout=SUITE_SECONDS,
            shown=r"tests/image/.*(?=\[ *\d+%\])",
        )
        totals = ET.parse(results).getroot().find("testsuite")  # noqa: S314 - pytest just wrote it
        if totals is None:
            raise StepError(f"{results} names no test suite")
        skipped = int(totals.get("skipped", "0"))
        passed = int(totals.get("tests", "0")) - skipped
        running.note = f"({passed} passed)"
    return passed, skipped


def read_verdict(layout: Layout) -> Verdict:
    """Return what the last verification found.

    Raises:
        StepError: there was none.
    """
    try:
        return Verdict(**json.loads((layout.build / "verdict.json").read_text()))
    except FileNotFoundError as error:
        raise StepError("the image was not verified: Packer's source qemu.verify did not run") from error


def _finish_speech(path: Path) -> float:
    """Write into a streamed WAV file how long it turned out to be; returns its seconds.

    Raises:
        StepError: it cannot be read, is too short or too long for one sentence, or silent.
    """
    try:
        with wave.open(str(path)) as clip:
            shape = clip.getparams()
            data = clip.readframes(shape.nframes)
    except (OSError, EOFError, wave.Error) as error:
        raise StepError(f"{path} cannot be read: {error}") from error
    seconds: float = len(data) / (shape.sampwidth * shape.nchannels * shape.framerate)
    if not 0.5 < seconds < 60 or max(map(abs, memoryview(data).cast("h"))) < 100:
        raise StepError(f"{path} holds {seconds:.2f} s and is no spoken sentence")
    with wave.open(str(path), "wb") as clip:
        clip.setparams(shape._replace(nframes=0))
        clip.writeframes(data)
    return round(seconds, 2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
