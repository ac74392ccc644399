"""The package around the processes: generated code, settings, what each of them loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from appliance.engine.generate import ROOT, generate
from appliance.engine.settings import EngineSettings

GENERATED = (
    *(f"{name}.{suffix}" for name in ("engine_pb2", "engine_pb2_grpc") for suffix in ("py", "pyi")),
    "worker_pb2.py",
    "worker_pb2.pyi",
)


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    generate(tmp_path)
    made = sorted(path.name for path in (tmp_path / "appliance/engine").iterdir())
    assert made == sorted(GENERATED)
    for name in GENERATED:
        path = Path("appliance/engine") / name
        assert (ROOT / path).read_text() == (tmp_path / path).read_text(), (
            f"{name} is stale: run 'python -m appliance.engine.generate'"
        )


@pytest.mark.parametrize("module", ["client", "front", "server"])
def test_only_the_zygote_loads_the_model(module: str) -> None:
    code = (
        f"import sys, appliance.engine.{module}\n"
        "print({'torch', 'numpy', 'appliance.speech', 'appliance.engine.model'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_workers_have_no_grpc() -> None:
    code = "import sys, appliance.engine.server, appliance.engine.worker\nprint('grpc' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTUDO_ENGINE_MAX_QUEUE", "3")
    monkeypatch.setenv("TESTUDO_ENGINE_SOCKET", "/run/other.sock")
    settings = EngineSettings()
    assert (settings.max_queue, settings.socket) == (3, Path("/run/other.sock"))
    monkeypatch.setenv("TESTUDO_ENGINE_DEVICE", "tpu")
    with pytest.raises(ValidationError, match="device"):
        EngineSettings()


def test_every_setting_is_described() -> None:
    assert all(field.description for field in EngineSettings.model_fields.values())


def test_a_tenants_share_is_at_least_one() -> None:
    settings = EngineSettings(tenant_share=0.25)
    assert [settings.share(limit) for limit in (0, 1, 4, 32)] == [0, 1, 1, 8]


def test_memory_of_workers_is_half_of_the_machines_unless_set() -> None:
    assert EngineSettings(worker_memory_mib=3).worker_bytes == 3 << 20
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert abs(EngineSettings().worker_bytes - total // 2) < 1 << 20
