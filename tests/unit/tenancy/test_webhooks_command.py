"""`testudo webhook`, as an operator uses it."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner
from webhooks_world import (
    HERE,
    Authority,
    Receiver,
    authority,
    deliver_all,
    make_post,
    receiver,
    running_receiver,
    settings,
)

from appliance.cli import app
from appliance.identity.credentials import Credentials
from appliance.tenancy.house import Tenancy
from appliance.tenancy.settings import TenancySettings
from appliance.tenancy.setup import setup
from appliance.vault.root_key import RootKeyFile
from appliance.vault.signing import LocalSigner

__all__ = ["authority", "receiver", "running_receiver"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenancy]:
    """A state that the environment names, with a tenant `default`."""
    credentials = Credentials(tmp_path)
    credentials.bootstrap()
    values = {
        "DATABASE": tmp_path / "testudo.sqlite",
        "OBJECTS": tmp_path / "objects",
        "ROOT_KEY": tmp_path / "root.key",
        "SIGNING_KEY": tmp_path / "signing.key",
        "PEPPER": credentials.pepper,
        "KEYRING": credentials.keyring,
    }
    for name, value in values.items():
        monkeypatch.setenv(f"TESTUDO_{name}", str(value))
    RootKeyFile(tmp_path / "root.key").create()
    LocalSigner.create(tmp_path / "signing.key")
    setup(TenancySettings())
    tenancy = Tenancy.open(TenancySettings())
    yield tenancy
    tenancy.close()


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["webhook", *arguments])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    assert "hush" not in result.output
    return result


def test_a_webhook_is_set_shown_rotated_and_removed(state: Tenancy, receiver: Receiver) -> None:
    url, origin = receiver.url(), f"https://hooks.example:{receiver.port}"
    first = run("set", "default", url)
    secret = first.stdout.strip()
    assert secret.startswith("whsec_")
    assert origin in first.stderr
    shown = run("show", "default")
    assert origin in shown.output
    assert secret not in shown.output
    (row,) = json.loads(run("show", "default", "--json").stdout)
    assert (row["state"], row["waiting"], row["overlap_until"]) == ("active", 0, None)
    rotated = json.loads(run("rotate", "default", "--overlap-hours", "2", "--json").stdout)
    assert rotated["secret"].startswith("whsec_")
    assert rotated["secret"] != secret
    assert rotated["overlap_until"] is not None
    assert "rotation_unfinished" in run("rotate", "default", status=1).stderr
    assert run("rotate", "default", "--overlap-hours", "0").stdout.startswith("whsec_")
    assert run("remove", "default").stdout == "default is told no more\n"
    assert run("remove", "default").stdout == "default has no webhook; nothing was changed\n"


def test_a_test_says_what_came_of_it(state: Tenancy, receiver: Receiver, authority: Authority) -> None:
    run("set", "default", receiver.url())
    post, ended = make_post(state, settings(authority), HERE), threading.Event()

    def work() -> None:
        while not ended.wait(0.05):
            deliver_all(post)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        (row,) = json.loads(run("test", "default", "--json").stdout.splitlines()[-1])
        assert (row["state"], row["error_code"]) == ("succeeded", None)
        receiver.answer(500)
        assert "http_500" in run("test", "default", status=1).stdout
    finally:
        ended.set()
        thread.join()
    assert json.loads(receiver.received[0][2])["type"] == "webhook.test"


def test_a_test_that_nobody_sends_is_said_and_forgotten(state: Tenancy, receiver: Receiver) -> None:
    run("set", "default", receiver.url())
    assert "not_sent" in run("test", "default", "--wait-seconds", "1", status=1).stderr
    (row,) = json.loads(run("show", "default", "--json").stdout)
    assert row["waiting"] == 0


def test_what_cannot_be_is_said_in_one_line(state: Tenancy) -> None:
    for arguments, code in (
        (("set", "default", "http://hooks.example/hush"), "bad_url"),
        (("set", "default", "https://hush@hooks.example/"), "bad_url"),
        (("set", "nobody", "https://hooks.example/hush"), "unknown_tenant"),
        (("set", "system", "https://hooks.example/hush"), "tenant_reserved"),
        (("show", "default"), "no_webhook"),
        (("show", "nobody"), "unknown_tenant"),
        (("rotate", "default"), "no_webhook"),
        (("test", "default"), "no_webhook"),
        (("remove", "nobody"), "unknown_tenant"),
    ):
        said = run(*arguments, status=1).stderr
        assert said.startswith("error: ")
        assert said.endswith(f"[{code}]\n")
        assert said.count("\n") == 1
