"""Regenerates the code of the .proto files: `python -m appliance.engine.generate`. Needs the dev extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVICE = "appliance/engine/engine.proto"
MESSAGES = "appliance/engine/worker.proto"


def generate(out: Path) -> None:
    """Write the _pb2.py and _pb2.pyi of both files, and the _pb2_grpc ones of the service, below `out`.

    Paths are those of the package tree, so that the modules import each other by their full names.
    Raises subprocess.CalledProcessError if protoc fails.
    """
    scripts = Path(sys.executable).parent
    plugins = [f"--plugin={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    messages = [f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    service = [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path=."]
    subprocess.run([*protoc, *plugins, *messages, SERVICE, MESSAGES], cwd=ROOT, check=True)
    subprocess.run([*protoc, *plugins, *service, SERVICE], cwd=ROOT, check=True)


if __name__ == "__main__":
    generate(ROOT)
