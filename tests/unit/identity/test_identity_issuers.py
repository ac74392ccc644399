"""The file that says which identity providers are believed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import appliance.identity
from appliance.identity.errors import IdentityConfigurationError
from appliance.identity.issuers import Issuers, Rule
from appliance.identity.roles import Role

EXAMPLE = Path(appliance.identity.__file__).with_name("issuers.example.yml")
ISSUER: dict[str, Any] = {
    "name": "idp",
    "issuer": "https://idp.example",
    "audiences": ["testudo"],
    "algorithms": ["RS256"],
    "grants": [{"when": [{"claim": "a", "any_of": ["b"]}], "tenant": "t", "roles": ["caller"]}],
}


def test_the_example() -> None:
    issuers = Issuers.load(EXAMPLE)
    assert [each.name for each in issuers.issuers] == ["google", "aws", "corporate"]
    assert not issuers.allow_loopback_http
    google, aws, _ = issuers.issuers
    assert google.require[0].holds({"hd": "clinic.example"})
    assert google.require[1].holds({"email_verified": True})
    assert aws.require[0].holds({"https://sts.amazonaws.com/": {"aws_account": "111122223333"}})
    assert {role for each in issuers.issuers for grant in each.grants for role in grant.roles} == set(Role)


def check(**change: object) -> None:
    Issuers.model_validate({"issuers": [copy.deepcopy(ISSUER) | change]})


def test_the_smallest_issuer() -> None:
    check()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Google"},
        {"name": "a:b"},
        {"audiences": []},
        {"algorithms": []},
        {"algorithms": ["none"]},
        {"algorithms": ["HS256"]},
        {"algorithms": ["EdDSA"]},
        {"algorithms": ["RS256", "HS512"]},
        {"grants": []},
        {"grants": [ISSUER["grants"][0] | {"when": []}]},
        {"grants": [ISSUER["grants"][0] | {"tenant": "../t"}]},
        {"grants": [ISSUER["grants"][0] | {"roles": []}]},
        {"grants": [ISSUER["grants"][0] | {"roles": ["root"]}]},
        {"require": [{"claim": "hd", "any_of": []}]},
        {"require": [{"claim": [], "any_of": ["a"]}]},
        {"require": [{"claim": "exp", "any_of": [1]}]},
        {"max_lifetime_seconds": 86401},
        {"tenant_claim": "tid"},
        {"issuer": "http://idp.example"},
        {"issuer": "http://127.0.0.1:8000"},
        {"issuer": "idp.example"},
        {"issuer": "https://"},
        {"issuer": "https://user:secret@idp.example"},
        {"issuer": "https://idp.example/?a=b"},
        {"issuer": "https://idp.example/#a"},
        {"issuer": "https://idp.example:port"},
        {"issuer": "https://[idp.example"},
        {"issuer": "https://idp.example/a b"},
        {"issuer": "https://idp.example/\n"},
        {"issuer": "https://idp\u2024example"},
        {"jwks_uri": "http://idp.example/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "HTTP://idp.example"},
    ],
)
def test_bad_issuers(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        check(**change)


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.9.9.9", True),
        ("http://[::1]:8000", True),
        ("https://idp.example", True),
        ("http://localhost:8000", False),
        ("http://127.0.0.1.evil.example", False),
        ("http://10.0.0.1", False),
        ("http://0.0.0.0", False),
        ("http://2130706433", False),
        ("http://169.254.169.254", False),
        ("http://[::ffff:10.0.0.1]", False),
        ("ftp://127.0.0.1", False),
    ],
)
def test_http_is_for_this_machine_and_only_by_number(url: str, good: bool) -> None:
    content = {"allow_loopback_http": True, "issuers": [ISSUER | {"jwks_uri": url}]}
    if good:
        assert Issuers.model_validate(content).issuers[0].jwks_uri == url
    else:
        with pytest.raises(ValidationError, match="https URLs"):
            Issuers.model_validate(content)


@pytest.mark.parametrize("change", [{"name": "two"}, {"issuer": "https://two.example"}])
def test_two_issuers_of_one_name_or_address(change: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="same name or issuer"):
        Issuers.model_validate({"issuers": [ISSUER, ISSUER | change]})


def test_an_address_counts_only_where_it_is_verified() -> None:
    email = {"claim": "email", "any_of": ["ada@clinic.example"]}
    grants = [{"when": [email], "tenant": "t", "roles": ["admin"]}]
    for change in ({"grants": grants}, {"require": [email]}):
        with pytest.raises(ValidationError, match="email_verified"):
            check(**change)
    check(grants=grants, require=[{"claim": "email_verified", "any_of": [True]}])


def test_keys_are_not_fresh_for_longer_than_they_are_usable() -> None:
    with pytest.raises(ValidationError, match="fresh_seconds is over"):
        Issuers.model_validate({"issuers": [ISSUER], "keys": {"fresh_seconds": 100, "usable_seconds": 99}})


@pytest.mark.parametrize(
    ("claims", "holds"),
    [
        ({"a": "x"}, True),
        ({"a": ["y", "x"]}, True),
        ({"a": True}, True),
        ({"a": "y"}, False),
        ({"a": "X"}, False),
        ({"a": 1}, False),
        ({"a": [1]}, False),
        ({"a": "true"}, False),
        ({"a": {"x": 1}}, False),
        ({"a": [["x"]]}, False),
        ({"a": []}, False),
        ({"a": None}, False),
        ({}, False),
    ],
)
def test_a_rule(claims: dict[str, object], holds: bool) -> None:
    rule = Rule.model_validate({"claim": "a", "any_of": ["x", True]})
    assert rule.holds(claims) is holds


def test_a_rule_on_a_nested_claim() -> None:
    rule = Rule.model_validate({"claim": ["https://a/", "b"], "any_of": ["x"]})
    assert rule.holds({"https://a/": {"b": "x"}})
    for claims in ({"b": "x"}, {"https://a/": "x"}, {"https://a/": [{"b": "x"}]}, {"https://a/b": "x"}):
        assert not rule.holds(claims)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("issuers: [", "not_yaml"),
        ("issuers: []\nissuers: []\n", "not_yaml"),
        ("!!python/object/apply:os.system [true]", "not_yaml"),
        ("[" * 2000, "not_yaml"),
        ("\x00", "not_yaml"),
        ("", "invalid"),
        ("a", "invalid"),
        ("version: 2", "invalid"),
        ("#" * ((1 << 20) + 1), "too_large"),
    ],
    ids=range(9),
)
def test_a_bad_file(tmp_path: Path, content: str, code: str) -> None:
    path = tmp_path / "issuers.yml"
    path.write_text(content)
    with pytest.raises(IdentityConfigurationError) as caught:
        Issuers.load(path)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


def test_a_rule_that_is_there_twice_is_not_silently_dropped(tmp_path: Path) -> None:
    path = tmp_path / "issuers.yml"
    text = yaml.safe_dump({"issuers": [ISSUER | {"require": [{"claim": "hd", "any_of": ["a"]}]}]})
    path.write_text(text)
    assert Issuers.load(path).issuers[0].require
    path.write_text(f"{text}  require: []\n")
    assert not yaml.safe_load(path.read_text())["issuers"][0]["require"]
    with pytest.raises(IdentityConfigurationError) as caught:
        Issuers.load(path)
    assert caught.value.code == "not_yaml"


def test_the_field_is_named_and_the_value_is_not(tmp_path: Path) -> None:
    path = tmp_path / "issuers.yml"
    path.write_text(yaml.safe_dump({"issuers": [ISSUER | {"name": "Hidden Value"}]}))
    with pytest.raises(IdentityConfigurationError, match=r"issuers\.0\.name") as caught:
        Issuers.load(path)
    assert "Hidden Value" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IdentityConfigurationError) as caught:
        Issuers.load(tmp_path / "none.yml")
    assert caught.value.code == "unreadable"
