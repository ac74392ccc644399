"""`testudo consent` and `testudo voice`, on the state that the API works with."""

import json

import pytest
from api_server import SPEECH
from api_state import State
from api_voices import make_voice
from flask.testing import FlaskClient
from typer.testing import CliRunner, Result

from appliance.cli import app
from appliance.tenancy import trail


@pytest.fixture
def voice(client: FlaskClient) -> tuple[str, str]:
    return make_voice(client)


def run(state: State, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--tenant", "acme"], env=state.environment)


def test_what_there_is_is_shown(state: State, voice: tuple[str, str]) -> None:
    listed = json.loads(run(state, "consent", "list", "--limit", "100", "--json").stdout)
    mine = next(item for item in listed if item["id"] == voice[0])
    assert (mine["state"], mine["speaker"], mine["purpose"]) == ("active", "Anna Müller", "reading letters")
    shown = run(state, "consent", "show", voice[0])
    assert "Anna Müller" in shown.stdout
    assert "had to read: I, {speaker}, permit" in shown.stdout
    assert voice[1] in run(state, "voice", "list", "--limit", "100").stdout
    assert json.loads(run(state, "voice", "show", voice[1], "--json").stdout)[0]["consent_id"] == voice[0]


def test_an_end_by_command(state: State, client: FlaskClient, voice: tuple[str, str]) -> None:
    done = run(state, "consent", "revoke", voice[0], "--by-speaker")
    assert (done.exit_code, done.stdout) == (0, f"{voice[0]} is revoked\n")
    assert "nothing was changed" in run(state, "consent", "revoke", voice[0]).stdout
    ended = list(trail.StoredChains(state.tenancy.store).entries("acme"))[-1]
    assert (ended.payload["because"], ended.payload["actor"]) == ("revoked_by_speaker", "system:cli")
    spoken = client.post(SPEECH, json={"input": "x", "model": "fake", "voice": voice[1]})
    assert spoken.json["code"] == "consent_ended"


def test_a_voice_is_deleted_by_command(state: State, voice: tuple[str, str]) -> None:
    assert run(state, "voice", "delete", voice[1]).exit_code == 0
    again = run(state, "voice", "delete", voice[1])
    assert again.exit_code == 1
    assert "[unknown_voice]" in again.stderr


@pytest.mark.parametrize("name", ["../x", "x.pth", "cons_\x01", "-"])
def test_what_is_no_id_is_refused_without_a_traceback(state: State, name: str) -> None:
    for command in (("consent", "show"), ("consent", "revoke"), ("voice", "show"), ("voice", "delete")):
        result = run(state, *command, name)
        assert result.exit_code == 1
        assert "error: no" in result.stderr
        assert "Traceback" not in result.output


def test_another_tenants_things_are_not_shown(state: State, voice: tuple[str, str]) -> None:
    for command, identifier in (("consent", voice[0]), ("voice", voice[1])):
        arguments = [command, "show", identifier, "--tenant", "default"]
        assert CliRunner().invoke(app, arguments, env=state.environment).exit_code == 1
