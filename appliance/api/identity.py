"""Who calls: which proofs the settings accept, and what a refusal is to the caller and to the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import g, request

from appliance.api.blueprint import REQUIRED_SCOPE
from appliance.api.context import record, services
from appliance.api.engine import RETRY_SECONDS
from appliance.api.problems import Problem
from appliance.identity.authentication import AuthenticationError, IssuerUnavailableError
from appliance.identity.identitytoken import IdentityTokenVerifier
from appliance.identity.issuers import Issuers
from appliance.identity.oidc import OidcVerifier
from appliance.identity.request import RequestAuthenticator
from appliance.tenancy.authentication import StoreAuthenticator
from appliance.tenancy.denials import Denial
from appliance.tenancy.house import SYSTEM_TENANT
from appliance.tenancy.tenants import TenantNotServedError

if TYPE_CHECKING:
    from appliance.api.settings import ApiSettings
    from appliance.identity.principal import Principal
    from appliance.tenancy.house import Tenancy
    from appliance.tenancy.tenants import Standings

REALM = 'Bearer realm="testudo"'
ANONYMOUS = "anonymous"


def authenticator(settings: ApiSettings, tenancy: Tenancy, standings: Standings) -> RequestAuthenticator:
    """What knows callers by the proofs of the settings. Raises IdentityConfigurationError, ValueError."""
    tokens = oidc = None
    if settings.identity_keys is not None:
        tokens = IdentityTokenVerifier.load(
            settings.identity_keys, issuer=settings.identity_issuer, audience=settings.identity_audience
        )
    if settings.issuers is not None:
        oidc = OidcVerifier(Issuers.load(settings.issuers))
    return RequestAuthenticator(
        api_keys=StoreAuthenticator(tenancy, standings, cache_seconds=settings.cache_seconds),
        identity_tokens=tokens,
        oidc=oidc,
        behind_gateway=settings.behind_gateway,
    )


def authorise() -> None:
    """Let in a known caller of a served tenant, within its requests per minute, with the route's scope."""
    principal = _authenticate()
    g.principal = record().principal = principal
    try:
        g.allowance = services().quotas.admit(principal.tenant)
    except TenantNotServedError as error:
        _note(SYSTEM_TENANT, services().tenancy.actor(principal), error.code)
        raise Problem(error.code) from None
    scope = REQUIRED_SCOPE[request.endpoint] if request.endpoint else None
    if scope is not None and scope not in principal.scopes:
        _note(principal.tenant, services().tenancy.actor(principal), "insufficient_scope")
        raise Problem(
            "insufficient_scope",
            f"the caller lacks the scope {scope}",
            headers={"WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{scope}"'},
        )


def _authenticate() -> Principal:
    try:
        return services().authenticator.authenticate(request.headers)
    except IssuerUnavailableError as error:
        raise Problem(error.code, retry_after=RETRY_SECONDS) from None
    except AuthenticationError as error:
        _note(SYSTEM_TENANT, ANONYMOUS, error.reason)
        challenge = REALM if error.code == "missing_api_key" else f'{REALM}, error="invalid_token"'
        raise Problem(error.code, headers={"WWW-Authenticate": challenge}) from None


def _note(tenant: str, actor: str, reason: str) -> None:
    # A path that is not there names no operation.
    operation = (request.endpoint or "nothing").rpartition(".")[2]
    services().denials.note(Denial(tenant, actor, operation, reason))
