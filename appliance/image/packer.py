"""Run Packer: the current one as the template is written, 1.6 (Debian's) on a copy that it understands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.image.steps import StepError, capture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.image.layout import Layout

MODERN = (1, 10)
FENCED = re.compile(r"^ *# packer>=1\.10 begin\n.*?^ *# packer>=1\.10 end\n", re.DOTALL | re.MULTILINE)


def packer_version() -> tuple[int, ...]:
    """Return Packer's version.

    Raises:
        StepError: it is missing or says something else.
    """
    if shutil.which("packer") is None:
        raise StepError("packer is missing: apt-get install packer (Debian 12), or HashiCorp's own >= 1.10")
    said = capture(["packer", "version"])
    found = re.match(r"Packer v(\d+)\.(\d+)\.(\d+)", said)
    if found is None:
        raise StepError(f"packer does not tell its version: {said[:100]}")
    return tuple(map(int, found.groups()))


def template(layout: Layout) -> Path:
    """Return the template's folder for the installed Packer.

    For one below 1.10 that is a copy in build/packer without plugins.pkr.hcl and the fenced lines, which set
    what old builders do not know. It builds and verifies the local image; an AMI takes the template itself.
    """
    if packer_version() >= MODERN:
        return layout.root / "packer"
    copy = layout.build / "packer"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for path in (layout.root / "packer").glob("*.pkr.hcl"):
        if path.name != "plugins.pkr.hcl":
            (copy / path.name).write_text(FENCED.sub("", path.read_text()))
    return copy


def variables(layout: Layout, **more: str | int) -> list[str]:
    """Return the command-line options that set the template's variables for this build."""
    values: Mapping[str, str | int] = {
        "testudo": Path(sys.executable).with_name("testudo").as_posix(),
        "app_version": distribution_version("testudo"),
        "build_dir": layout.build.as_posix(),
        **more,
    }
    return [f"-var={name}={value}" for name, value in values.items()]


def build(layout: Layout, source: str, variant: str, **more: str | int) -> None:
    """Build one source of the template, its output as it comes.

    Raises:
        StepError: Packer failed; it has said why.
    """
    command = ["packer", "build", "-color=false", f"-only=*{source}"]
    command += [f"-var-file={layout.root}/packer/vars/{variant}.pkrvars.hcl", *variables(layout, **more)]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        [*command, str(template(layout))], cwd=layout.root, env=environment, stdin=subprocess.DEVNULL
    ) as process:
        try:
            status = process.wait()
        except BaseException:
            # Packer stops its guest and its children on SIGINT; cleanup ends what is left.
            process.terminate()
            raise
    if status:
        raise StepError(
            f"packer could not build {source}; its last lines above say why (logs: {layout.logs})"
        )
