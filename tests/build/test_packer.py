"""The Packer template is valid for the Packer here; an AMI is refused where it could not be built well."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.cli.image import app
from appliance.image import aws, packer
from appliance.image.layout import Layout

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "packer"


@pytest.fixture
def checkout(tmp_path: Path) -> Layout:
    return Layout(ROOT, tmp_path)


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_every_source_is_valid_offline(checkout: Layout, variant: str) -> None:
    scratch = checkout.temporary / "verify"
    scratch.mkdir(parents=True)
    checkout.wheelhouse.mkdir()
    for name in ("key", "seed.img"):
        (scratch / name).touch()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", scratch / "k"], check=True)
    (scratch / "k").rename(scratch / "key")
    command = [
        "packer",
        "validate",
        f"-var-file={TEMPLATE}/vars/{variant}.pkrvars.hcl",
        *packer.variables(checkout),
    ]
    environment = {**os.environ, "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}", "CHECKPOINT_DISABLE": "1"}
    done = subprocess.run(
        [*command, str(packer.template(checkout))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_format_is_kept() -> None:
    assert subprocess.run(["packer", "fmt", "-check", "-diff", str(TEMPLATE)], check=False).returncode == 0


def test_every_variable_is_described() -> None:
    text = (TEMPLATE / "variables.pkr.hcl").read_text()
    blocks = re.findall(r'^variable "(\w+)" \{(.*?)^\}', text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == text.count("variable ")
    assert [name for name, block in blocks if "description" not in block] == []


def test_old_packer_gets_a_copy_without_what_it_does_not_know(
    checkout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packer, "packer_version", lambda: (1, 6, 6))
    copy = packer.template(checkout)
    names = {path.name for path in copy.iterdir()}
    assert names == {path.name for path in TEMPLATE.glob("*.pkr.hcl")} - {"plugins.pkr.hcl"}
    text = (copy / "sources.pkr.hcl").read_text()
    assert "metadata_options" not in text
    assert "imds_support" not in text
    assert "encrypt_boot" in text


def test_modern_packer_gets_the_template_itself(checkout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packer, "packer_version", lambda: (1, 10, 0))
    assert packer.template(checkout) == TEMPLATE


def test_the_build_instance_is_closed() -> None:
    text = (TEMPLATE / "sources.pkr.hcl").read_text()
    settings = {re.sub(r"\s+", " ", line.strip()) for line in text.splitlines()}
    assert {
        'http_tokens = "required"',
        "http_put_response_hop_limit = 1",
        'imds_support = "v2.0"',
        "associate_public_ip_address = false",
        'ssh_interface = "session_manager"',
        "encrypt_boot = true",
        'owners = ["136693071363"] # Debian',
    } <= settings


def test_an_ami_is_refused_with_a_list_of_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "PKR_VAR_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(aws, "packer_version", lambda: (1, 6, 6))
    result = CliRunner().invoke(app, ["build", "--target", "aws"])
    assert result.exit_code == 2
    for word in (
        "Packer >= 1.10 (here 1.6.6",
        "AWS credentials",
        "session-manager-plugin",
        *aws.REQUIRED_VARIABLES,
    ):
        assert word in result.output


def test_a_local_image_has_no_driver() -> None:
    result = CliRunner().invoke(app, ["build", "--target", "local", "--variant", "gpu"])
    assert result.exit_code == 2
    assert "variant cpu" in result.output


def test_the_play_is_told_the_variant() -> None:
    text = (TEMPLATE / "build.pkr.hcl").read_text()
    assert "testudo_variant=${var.variant}" in text


def test_an_ami_may_start_where_all_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "session-manager-plugin").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    for name in aws.REQUIRED_VARIABLES:
        monkeypatch.setenv(name, "given")
    monkeypatch.setattr(aws, "packer_version", lambda: (1, 11, 2))
    assert aws.missing() == []
