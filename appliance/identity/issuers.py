"""Which identity providers are believed, about whom, and what their people may do: data from a YAML file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    ValidationError,
    model_validator,
)

from appliance.identity.errors import IdentityConfigurationError
from appliance.identity.keyring import Name
from appliance.identity.roles import Role

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES = 1 << 20
# Public keys only: with a shared secret, whoever verifies could sign too (RFC 8725 section 3.2).
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
_Text = Annotated[str, Field(min_length=1, max_length=2048)]
_Path = Annotated[
    tuple[_Text, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1, max_length=4),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Model):
    """One claim and the values of which it must have one.

    `claim` is a name, or the names on the way into nested claims. A claim that is a list, such as groups,
    holds if one of its elements does. Types count: true is not "true".
    """

    claim: _Path
    any_of: tuple[StrictBool | StrictStr, ...] = Field(min_length=1, max_length=1000)

    def holds(self, claims: Mapping[str, Any]) -> bool:
        """Whether verified claims satisfy this; a claim that is not there satisfies nothing."""
        value: Any = claims
        for name in self.claim:
            if not isinstance(value, Mapping) or name not in value:
                return False
            value = value[name]
        held = value if isinstance(value, list) else [value]
        return any(type(one) is type(wanted) and one == wanted for one in held for wanted in self.any_of)


class Grant(_Model):
    """Roles in a tenant for those whose claims satisfy every rule of `when`.

    The tenant is written here and comes from no claim: an identity provider says who somebody is, not whose
    data they may touch. There is at least one rule, lest a public provider let the whole world in.
    """

    when: tuple[Rule, ...] = Field(min_length=1, max_length=16)
    tenant: Name
    roles: frozenset[Role] = Field(min_length=1)


class Issuer(_Model):
    """One identity provider. `issuer` is the `iss` claim, letter by letter (OpenID Connect Core 3.1.3.7).

    Without `jwks_uri` the keys are where `issuer`/.well-known/openid-configuration says. `require` must hold
    for everybody; then `grants` say what for. `max_lifetime_seconds` bounds exp - iat.
    """

    name: Name
    issuer: _Text
    jwks_uri: _Text | None = None
    audiences: frozenset[_Text] = Field(min_length=1, max_length=16)
    algorithms: frozenset[Algorithm] = Field(min_length=1)
    max_lifetime_seconds: int = Field(default=3600, ge=60, le=86400)
    require: tuple[Rule, ...] = Field(default=(), max_length=16)
    grants: tuple[Grant, ...] = Field(min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _an_address_is_verified(self) -> Self:
        rules = (*self.require, *(rule for grant in self.grants for rule in grant.when))
        verified = any(rule.claim == ("email_verified",) for rule in self.require)
        if any(rule.claim == ("email",) for rule in rules) and not verified:
            raise ValueError("a rule on email needs email_verified under require")
        return self


class KeyCachePolicy(_Model):
    """How long an issuer's keys are kept, and how hard its host is asked for them.

    Keys are fetched anew after `fresh_seconds`, or when a token names an unknown one, but at most once in
    `retry_seconds`. While the host is down they go on for `usable_seconds` after they were last fetched, so
    long can a key that the issuer has withdrawn outlive a cut connection.
    """

    fresh_seconds: int = Field(default=900, ge=10, le=86400)
    usable_seconds: int = Field(default=86400, ge=10, le=604800)
    retry_seconds: int = Field(default=30, ge=1, le=3600)
    timeout_seconds: float = Field(default=5, gt=0, le=30)
    max_bytes: int = Field(default=65536, ge=1024, le=1 << 20)
    max_keys: int = Field(default=32, ge=1, le=256)

    @model_validator(mode="after")
    def _fresh_is_usable(self) -> Self:
        if self.fresh_seconds > self.usable_seconds:
            raise ValueError("fresh_seconds is over usable_seconds")
        return self


class Issuers(_Model):
    """The whole file. `allow_loopback_http` admits http to 127.0.0.0/8 and ::1, for tests on one machine."""

    version: Literal[1] = 1
    allow_loopback_http: bool = False
    keys: KeyCachePolicy = KeyCachePolicy()
    issuers: tuple[Issuer, ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _distinct_and_reachable_safely(self) -> Self:
        for values in ([each.name for each in self.issuers], [each.issuer for each in self.issuers]):
            if len(set(values)) != len(values):
                raise ValueError("two issuers have the same name or issuer")
        for each in self.issuers:
            for url in (each.issuer, each.jwks_uri):
                if url is not None and not is_safe_url(url, allow_loopback_http=self.allow_loopback_http):
                    raise ValueError("issuer and jwks_uri are https URLs without user, query or fragment")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a YAML file of at most 1 MiB. Raises IdentityConfigurationError."""
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise IdentityConfigurationError("too_large", f"{path} is over {MAX_FILE_BYTES} bytes")
            return cls.model_validate(yaml.load(content, _UniqueKeys))  # noqa: S506 - derived from SafeLoader
        except OSError as error:
            raise IdentityConfigurationError("unreadable", f"cannot read {path} ({error.strerror})") from None
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
            raise IdentityConfigurationError("not_yaml", f"{path} is not YAML with unique keys") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise IdentityConfigurationError("invalid", f"{path}: {place}: {first['msg']}") from None


def is_safe_url(url: str, *, allow_loopback_http: bool) -> bool:
    """Whether keys may be fetched from `url`: https, or, if allowed, http to a loopback address by number."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url and not {"@", "?", "#", "\\"} & set(url)
    return (
        plain and bool(host) and (parts.scheme == "https" or (allow_loopback_http and is_loopback_http(url)))
    )


def is_loopback_http(url: str) -> bool:
    """Whether `url` is http to 127.0.0.0/8 or ::1, which no resolver has a say in."""
    parts = urlsplit(url)
    try:
        return parts.scheme == "http" and ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


class _UniqueKeys(yaml.SafeLoader):
    """YAML keeps the last of two equal keys; a second `require` would silently undo the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len({repr(key) for key in keys}) != len(keys):
            raise yaml.constructor.ConstructorError(None, None, "a key is there twice", node.start_mark)
        return super().construct_mapping(node, deep)
