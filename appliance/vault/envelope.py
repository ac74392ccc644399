"""Messages of the AWS Encryption SDK under one keyring.

Source: AWS Encryption SDK, message format and algorithm suites reference; Material Providers Library,
required encryption context CMM.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

from aws_cryptographic_material_providers.keystore import (  # type: ignore[import-untyped]
    errors as key_store_errors,
)
from aws_cryptographic_material_providers.mpl import (  # type: ignore[import-untyped]
    AwsCryptographicMaterialProviders,
)
from aws_cryptographic_material_providers.mpl import errors as mpl_errors
from aws_cryptographic_material_providers.mpl.config import (  # type: ignore[import-untyped]
    MaterialProvidersConfig,
)
from aws_cryptographic_material_providers.mpl.models import (  # type: ignore[import-untyped]
    CreateDefaultCryptographicMaterialsManagerInput,
    CreateMultiKeyringInput,
    CreateRawAesKeyringInput,
    CreateRequiredEncryptionContextCMMInput,
)
from aws_encryption_sdk import CommitmentPolicy, EncryptionSDKClient  # type: ignore[import-untyped]
from aws_encryption_sdk.identifiers import AlgorithmSuite  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError

from appliance.vault.context import FIELDS
from appliance.vault.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Commits to its data key, so that no ciphertext opens to two contents under two keys. The suite with a
# signature would let readers who cannot write prove who wrote; here whoever opens can also seal, and P-384
# costs 2 ms a message.
SUITE: Final = AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY
# Frames from 64 to 256 KiB are fastest, 1 ms/MiB; the SDK's 4 KiB costs four times as much, 1 MiB twice.
FRAME_BYTES: Final = 64 << 10
# Header, data key, commitment and tags: about 250 bytes, and 32 for each frame.
OVERHEAD_BYTES: Final = 1 << 10

MATERIALS: Final = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
_CLIENT: Final = EncryptionSDKClient(
    commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT, max_encrypted_data_keys=1
)
_ELSEWHERE: Final = (
    BotoCoreError,
    ClientError,
    *(
        getattr(errors, name)
        for errors in (mpl_errors, key_store_errors)
        for name in ("ComAmazonawsKms", "ComAmazonawsDynamodb")
    ),
)


def aes_keyring(name: str, key: bytes) -> Any:
    """A raw AES-256-GCM keyring (NIST SP 800-38D: at most 2**32 messages before `key` is rotated)."""
    return MATERIALS.create_raw_aes_keyring(
        CreateRawAesKeyringInput(
            key_namespace="testudo",
            key_name=name,
            wrapping_key=key,
            wrapping_alg="ALG_AES256_GCM_IV12_TAG16",
        )
    )


def any_keyring(keyrings: Iterable[Any]) -> Any:
    """A keyring that opens what one of `keyrings` sealed, and is not for sealing."""
    return MATERIALS.create_multi_keyring(
        CreateMultiKeyringInput(generator=None, child_keyrings=list(keyrings))
    )


class Envelope:
    """Seals with one keyring and opens with another. Threads may share it: nothing changes in it."""

    def __init__(self, seals: Any, opens: Any) -> None:
        self._seals = _bound(seals)
        self._opens = _bound(opens)

    def seal(self, plaintext: bytes, context: dict[str, str]) -> bytes:
        """Encrypt under a fresh data key, bound to `context`. Raises VaultError: key_unavailable."""
        try:
            # Read outside a `with` block: its exit logs a traceback for each failure that we report
            # ourselves.
            sealed: bytes = _CLIENT.stream(
                mode="encrypt",
                source=plaintext,
                materials_manager=self._seals,
                encryption_context=context,
                algorithm=SUITE,
                frame_length=FRAME_BYTES,
            ).read()
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - sealing fails only for want of a key
            raise VaultError("key_unavailable", f"no key to seal with ({type(error).__name__})") from None
        return sealed

    def open(self, sealed: bytes, context: dict[str, str]) -> bytes:
        """Decrypt what `seal` returned for the same context; nothing is returned before all is verified.

        Raises VaultError: not_authentic, key_unavailable.
        """
        source = io.BytesIO(sealed)
        stream = _CLIENT.stream(
            mode="decrypt", source=source, materials_manager=self._opens, encryption_context=context
        )
        try:
            plaintext: bytes = stream.read()
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - hostile bytes break a parser in many ways
            if any(isinstance(cause, _ELSEWHERE) for cause in _causes(error)):
                raise VaultError("key_unavailable", "the key to open with cannot be had") from None
            raise VaultError("not_authentic", "the ciphertext is not authentic for this context") from None
        # The SDK ignores what follows the last frame, and opens messages that carry a context of their own,
        # as all messages of signing suites do. `seal` writes none of these.
        if stream.header.encryption_context or source.tell() != len(sealed):
            raise VaultError("not_authentic", "the ciphertext is not authentic for this context")
        return plaintext


def _bound(keyring: Any) -> Any:
    """Have tenant, kind and id required: without this, a message made without them opens with any."""
    manager = MATERIALS.create_default_cryptographic_materials_manager(
        CreateDefaultCryptographicMaterialsManagerInput(keyring=keyring)
    )
    return MATERIALS.create_required_encryption_context_cmm(
        CreateRequiredEncryptionContextCMMInput(
            underlying_cmm=manager, required_encryption_context_keys=list(FIELDS)
        )
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error of the SDK, and the errors of the keyrings and services that it carries."""
    yield error
    for inner in (*error.args, *(getattr(error, "list", None) or ())):
        if isinstance(inner, BaseException):
            yield from _causes(inner)
