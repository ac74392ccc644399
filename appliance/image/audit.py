"""Audit the finished disk: lynis, OpenSCAP and our own tests of the controls, all inside one boot of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.image import auditors
from appliance.image.boot import scratch, settle
from appliance.image.steps import StepError, step

if TYPE_CHECKING:
    from appliance.image.layout import Layout

# Inside the machine; a file system in memory of its own, since /run holds no programs.
FOLDER = "/run/testudo-audit"
TRANSFER_SECONDS = 120.0
LYNIS_SECONDS = 1500.0
OSCAP_SECONDS = 2400.0
TESTS_SECONDS = 900.0
# What is run as root in FOLDER. The libraries that the image lacks are beside the programs.
ENVIRONMENT = (
    f"env LD_LIBRARY_PATH={FOLDER}/lib/x86_64-linux-gnu:{FOLDER}/usr/lib/x86_64-linux-gnu:{FOLDER}/usr/lib"
    f" OSCAP_SCHEMA_PATH={FOLDER}/usr/share/openscap/schemas OSCAP_XSLT_PATH={FOLDER}/usr/share/openscap/xsl"
    f" OSCAP_CPE_PATH={FOLDER}/usr/share/openscap/cpe"
)
LYNIS = (
    f"cd {FOLDER}/usr/share/lynis && ../../sbin/lynis audit system --quick --no-colors"
    f" --profile {FOLDER}/etc/lynis/default.prf --plugindir {FOLDER}/plugins"
    f" --log-file {FOLDER}/lynis.log --report-file {FOLDER}/lynis-report.dat"
)


def results(layout: Layout) -> Path:
    """Folder of what the auditors wrote and what the report is made of."""
    return layout.build / "audit"


def prepare(layout: Layout) -> None:
    """Fetch the programs and plan the evaluations, before anything is booted.

    A data stream of one's own comes by SCAP_DATASTREAM and SCAP_PROFILE.

    Raises:
        StepError: something could not be fetched, or the given stream lacks the profile.
    """
    folder = results(layout)
    shutil.rmtree(folder, ignore_errors=True)
    raw = folder / "raw"
    raw.mkdir(parents=True)
    with step(layout, "auditors", "lynis, OpenSCAP and data stream by apt") as running:
        fetched = auditors.fetch(layout, running)
        for name in ("tools.tgz", "packages.json"):
            shutil.copy(fetched / name, raw)
        shutil.copy(fetched / "ssg-debian12-ds.xml", raw / "stream-packaged.xml")
        command = [sys.executable, "-m", "tools.audit", "plan", str(raw)]
        given = os.environ.get("SCAP_DATASTREAM")
        if given:
            if not Path(given).is_file():
                raise StepError(f"SCAP_DATASTREAM names no file: {given}")
            shutil.copy(given, raw / "stream-given.xml")
            command += ["--given-profile", os.environ.get("SCAP_PROFILE", "")]
        running.run(command, cwd=layout.root, timeout=300)
    digest = layout.image.with_suffix(".qcow2.sha256").read_text().split()[0]
    version = json.loads(layout.image.with_name("version.json").read_text())
    facts = {"image": layout.image.name, "sha256": digest, "version": version}
    (raw / "machine.json").write_text(json.dumps(facts, indent=2) + "\n")


def run(layout: Layout) -> None:
    """Run everything in the booted machine; called by Packer while the machine is up.

    The auditors come before our tests, which load, stop and kill services.

    Raises:
        StepError: one of them could not do its work. That they found something is the report's matter.
    """
    raw = results(layout) / "raw"
    settle(layout)
    with step(layout, "transfer", "auditors into the machine's memory") as running:
        _remote(layout, f"sudo install -d -m 0700 {FOLDER}")
        options = "size=600m,mode=0700,nodev,nosuid,exec"
        _remote(layout, f"sudo mount -t tmpfs -o {options} testudo-audit {FOLDER}")
        _remote(layout, f"sudo tar -xzf - -C {FOLDER}", raw / "tools.tgz")
        _remote(layout, f"sudo mkdir -p {FOLDER}/plugins")
        for path in [*raw.glob("stream-*.xml"), *raw.glob("tailoring-*.xml")]:
            _remote(layout, f"sudo dd of={FOLDER}/{path.name} status=none", path)
        (raw / "tools.tgz").unlink()
    with ThreadPoolExecutor() as pool:
        # Side by side: under software emulation each waits for one of the machine's processors.
        runs = [pool.submit(_run_lynis, layout, raw), pool.submit(_run_oscap, layout, raw)]
    for one in runs:
        one.result()
    _remote(layout, f"sudo umount {FOLDER} && sudo rmdir {FOLDER}")
    with step(layout, "controls", "tests/image of the controls over ssh") as running:
        _run_tests(layout, raw, running.run)


def _run_lynis(layout: Layout, raw: Path) -> None:
    with step(layout, "lynis", "lynis on the running machine") as running:
        running.run(_ssh(layout, f"sudo sh -c '{LYNIS}'"), timeout=LYNIS_SECONDS, shown=r"\[\+\] .*")
        _fetch(layout, "lynis-report.dat", raw)


def _run_oscap(layout: Layout, raw: Path) -> None:
    plan: dict[str, Any] = json.loads((raw / "plan.json").read_text())
    for one in plan["evaluations"]:
        _evaluate(layout, raw, one)


def _evaluate(layout: Layout, raw: Path, one: dict[str, Any]) -> None:
    name, stream = one["name"], one["stream"]
    with step(layout, f"oscap-{name}", "OpenSCAP on the running machine") as running:
        tailoring = f"--tailoring-file {FOLDER}/tailoring-{stream}.xml " if one["tailored"] else ""
        command = (
            f"{ENVIRONMENT} {FOLDER}/usr/bin/oscap xccdf eval --progress --profile {one['profile']} "
            f"{tailoring}--results {FOLDER}/{name}.xml {FOLDER}/stream-{stream}.xml"
        )
        # 2 is that rules have failed.
        wrapped = f"sudo {command}; status=$?; [ $status -eq 0 ] || [ $status -eq 2 ]"
        running.run(_ssh(layout, wrapped), timeout=OSCAP_SECONDS, shown=r"\S+:\S+$")
        _fetch(layout, f"{name}.xml", raw)
        _remote(layout, f"sudo rm {FOLDER}/{name}.xml")


def _run_tests(layout: Layout, raw: Path, run: Any) -> None:
    """Run the tests that look at the system; failed ones (status 1) are findings."""
    folder = scratch(layout)
    options = ["-p", "no:cacheprovider", "-v", "--color=no", f"--junitxml={raw}/tests.xml"]
    options += ["--hosts=ssh://testudo", f"--ssh-config={folder}/ssh_config", "--sudo", "-m", "not services"]
    command = " ".join([sys.executable, "-m", "pytest", *options[:-1], f"'{options[-1]}'", "tests/image"])
    run(
        ["sh", "-c", f"{command}; [ $? -le 1 ]"],
        cwd=layout.root,
        timeout=TESTS_SECONDS,
        shown=r"tests/image/.*(?=\[ *\d+%\])",
    )


def report(layout: Layout) -> bool:
    """Write and print the report; returns whether everything is explained and every wanted score reached.

    Raises:
        StepError: the report could not be made.
    """
    folder = results(layout)
    command = [sys.executable, "-m", "tools.audit", "report", str(folder / "raw"), str(folder)]
    status = subprocess.run(command, cwd=layout.root, check=False).returncode
    if status not in {0, 1}:
        raise StepError("the report could not be made; the lines above say why")
    for name in ("audit.html", "audit.json"):
        shutil.copy(folder / name, layout.image.with_name(name))
    return status == 0


def _ssh(layout: Layout, command: str) -> list[str]:
    # A shared connection that is opened here would hold our pipes open for as long as it persists.
    options = ["-F", str(scratch(layout) / "ssh_config"), "-o", "ControlMaster=no"]
    return ["ssh", *options, "testudo", command]


def _remote(layout: Layout, command: str, content: Path | None = None) -> None:
    with (content or Path(os.devnull)).open("rb") as source:
        done = subprocess.run(
            _ssh(layout, command), stdin=source, capture_output=True, timeout=TRANSFER_SECONDS, check=False
        )
    if done.returncode:
        raise StepError(f"{command}: {done.stderr.decode(errors='replace').strip()[-300:]}")


def _fetch(layout: Layout, name: str, target: Path) -> None:
    with (target / name).open("wb") as output:
        done = subprocess.run(
            _ssh(layout, f"sudo cat {FOLDER}/{name}"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            timeout=TRANSFER_SECONDS,
            check=False,
        )
    if done.returncode:
        raise StepError(f"{name} could not be fetched from the machine")
