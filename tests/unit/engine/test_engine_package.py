"""The package around the process: generated code, settings, what the client loads, when a self-test fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engine_double import Double
from pydantic import ValidationError

from appliance.engine.generate import ROOT, generate
from appliance.engine.model import SelfTestError, self_test
from appliance.engine.settings import EngineSettings

GENERATED = ("engine_pb2.py", "engine_pb2.pyi", "engine_pb2_grpc.py", "engine_pb2_grpc.pyi")


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    generate(tmp_path)
    made = sorted(path.name for path in (tmp_path / "appliance/engine").iterdir())
    assert made == sorted(GENERATED)
    for name in GENERATED:
        path = Path("appliance/engine") / name
        assert (ROOT / path).read_text() == (tmp_path / path).read_text(), (
            f"{name} is stale: run 'python -m appliance.engine.generate'"
        )


def test_client_loads_no_model() -> None:
    code = (
        "import sys, appliance.engine.client\n"
        "print({'torch', 'numpy', 'appliance.speech', 'appliance.engine.server'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


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


def test_self_test_takes_its_time_and_speaks() -> None:
    double = Double(pace=0.02)
    assert self_test(double) >= 4 * 0.02
    assert double.stepped == 4


@pytest.mark.parametrize(("gain", "complaint"), [(0.0, "silent"), (float("nan"), "not finite")])
def test_self_test_fails_what_does_not_speak(gain: float, complaint: str) -> None:
    with pytest.raises(SelfTestError, match=complaint):
        self_test(Double(gain=gain))
