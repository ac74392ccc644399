"""Signatures, checked by the package of the specification's authors and by nothing of ours."""

import base64
import time
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from appliance.webhooks.signature import headers, new_secret

BODY = b'{"type":"job.succeeded","data":{"id":"job_1"}}'
DOCS = Path(__file__).resolve().parents[3] / "docs/jobs.md"


def signed(secret: str, *more: str, at: int | None = None) -> dict[str, str]:
    return headers("msg_1", BODY, at=int(time.time()) if at is None else at, signed_with=(secret, *more))


def test_the_vector_of_the_specification() -> None:
    """Of github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md and its test suites."""
    made = headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        b'{"test": 2432232314}',
        at=1614265330,
        signed_with=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    assert made == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_receiver_verifies_a_message() -> None:
    secret = new_secret()
    assert Webhook(secret).verify(BODY, signed(secret))["type"] == "job.succeeded"


def test_what_was_tampered_with_is_found() -> None:
    secret = new_secret()
    good = signed(secret)
    later = str(int(good["webhook-timestamp"]) + 1)
    for name, value in (("id", "msg_2"), ("timestamp", later), ("signature", "v1,AAAA")):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(BODY, good | {f"webhook-{name}": value})
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY.replace(b"succeeded", b"failed"), good)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(BODY, good)


def test_an_old_message_that_is_played_again_is_found() -> None:
    secret = new_secret()
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(secret).verify(BODY, signed(secret, at=int(time.time()) - 600))


def test_while_a_rotation_lasts_either_secret_verifies() -> None:
    new, old = new_secret(), new_secret()
    both = signed(new, old)
    for secret in (new, old):
        Webhook(secret).verify(BODY, both)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(BODY, signed(new))


def test_secrets_are_long_and_new_each_time() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32


def test_the_documented_receiver_verifies_and_refuses() -> None:
    """The example of docs/jobs.md, as it stands there."""
    code = DOCS.read_text().split("```python\n", 1)[1].split("```", 1)[0]
    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102 - our own documentation
    verified = names["verified"]
    assert callable(verified)
    secret = new_secret()
    good = signed(secret)
    assert verified(secret, good, BODY)["data"] == {"id": "job_1"}
    assert verified(secret, signed(new_secret(), secret), BODY)["data"] == {"id": "job_1"}
    for headers_, body in (
        (good, BODY + b" "),
        (good | {"webhook-id": "msg_2"}, BODY),
        (good | {"webhook-timestamp": "1614265330"}, BODY),
        (signed(secret, at=int(time.time()) - 600), BODY),
        (signed(secret, at=int(time.time()) + 600), BODY),
        (signed(new_secret()), BODY),
        (good | {"webhook-signature": "v1a," + good["webhook-signature"][3:]}, BODY),
    ):
        with pytest.raises(ValueError, match="message"):
            verified(secret, headers_, body)
