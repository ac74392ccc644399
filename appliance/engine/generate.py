"""Regenerates the gRPC code from engine.proto: `python -m appliance.engine.generate`. Needs the dev extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROTO = "appliance/engine/engine.proto"


def generate(out: Path) -> None:
    """Write engine_pb2.py, engine_pb2_grpc.py and their .pyi below `out`/appliance/engine.

    Paths are those of the package tree, so that the modules import each other by their full names.
    Raises subprocess.CalledProcessError if protoc fails.
    """
    scripts = Path(sys.executable).parent
    plugins = [f"--plugin={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    outputs = [
        f"--python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--grpc_python_out={out}",
        f"--mypy_grpc_out=quiet:{out}",
    ]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path=."]
    subprocess.run([*protoc, *plugins, *outputs, PROTO], cwd=ROOT, check=True)


if __name__ == "__main__":
    generate(ROOT)
