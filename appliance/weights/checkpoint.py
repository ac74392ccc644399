"""Opens a pinned PyTorch checkpoint: hashed, sealed, and read without running anything that is in it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from appliance.weights.errors import RefusedError, RequestError, StorageError
from appliance.weights.pins import PinnedFile
from appliance.weights.sources import CHUNK, open_regular

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
SHOWN = 5
ANOTHER_FILE = "It is not the published file. Delete it and run `testudo weights fetch`."
ANOTHER_MODEL = "The file holds another model than the pins describe: correct `config` or `key` there."


def read_pinned(path: Path, pin: PinnedFile) -> bytes:
    """Return the content of a small file at its pinned hash.

    Raises:
        WeightsError: it is missing, special, too large, or has another hash.
    """
    with os.fdopen(_sealed(path, pin), "rb") as copy:
        return copy.read()


def read_checkpoint(path: Path, pin: PinnedFile) -> Any:
    """Return what a checkpoint at its pinned hash holds; its tensors lie in memory, mapped, on the CPU.

    The hash is taken of a copy in memory that cannot be changed any more, and that copy is what torch reads,
    so a file exchanged meanwhile makes no difference.

    Raises:
        WeightsError: the file is missing, special, too large, has another hash, is no checkpoint as torch
            has written them since 1.6, or needs anything beyond tensors and plain containers.
    """
    descriptor = _sealed(path, pin)
    try:
        _check_zip(path, descriptor)
        # By its path, as torch maps no open file; this one cannot lead anywhere else.
        return torch.load(f"/proc/self/fd/{descriptor}", map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise RefusedError(
            "pickle_refused",
            f"{path} asks for more than tensors: {_first_sentence(error)}. Nothing of it was run",
            f"It may be hostile: do not open it with other tools. {ANOTHER_FILE}",
        ) from error
    except RefusedError:
        raise
    except Exception as error:  # a made-up file can make the reader raise anything
        raise RefusedError(
            "checkpoint_unreadable", f"{path} is no checkpoint: {_first_sentence(error)}", ANOTHER_FILE
        ) from error
    finally:
        os.close(descriptor)


def parameters(network: nn.Module, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the tensors of `state` that a network has as parameters, without those it lists as unused.

    Raises:
        RefusedError: a name is missing or unknown, a shape is another, a value is not finite.
    """
    unused: tuple[str, ...] = getattr(network, "UNUSED", ())
    found = {
        name: value
        for name, value in state.items()
        if not any(re.fullmatch(pattern, name) for pattern in unused)
    }
    expected = network.state_dict()
    for kind, names in (
        ("lacks", expected.keys() - found.keys()),
        ("has unknown", found.keys() - expected.keys()),
    ):
        if names:
            raise RefusedError("tensors_differ", f"{where} {kind} {_some(names)}", ANOTHER_MODEL)
    for name, value in found.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(expected[name].shape)}"
            raise RefusedError("tensors_differ", f"{where}: {name} has the shape {shapes}", ANOTHER_MODEL)
        if not value.is_floating_point():
            raise RefusedError("tensors_differ", f"{where}: {name} holds {value.dtype}", ANOTHER_MODEL)
        check_finite(name, value, where)
    return found


def tensors(content: object, pin: PinnedFile) -> dict[str, Tensor]:
    """Return the named tensors in a checkpoint's content, where its pin says that they are.

    Raises:
        RefusedError: there is something else.
    """
    if pin.key is not None:
        content = content.get(pin.key) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        place = f"`{pin.key}` of {pin.name}" if pin.key else pin.name
        raise RefusedError("tensors_differ", f"{place} is not a table of tensors", ANOTHER_MODEL)
    for name, value in content.items():
        if not isinstance(name, str) or not plain(value):
            raise RefusedError("tensors_differ", f"{pin.name}: {name!r} is no plain tensor", ANOTHER_MODEL)
    return content


def plain(value: object) -> bool:
    """Return whether a value is a dense tensor on the CPU and nothing that poses as one."""
    return (
        type(value) in {Tensor, nn.Parameter}
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def check_finite(name: str, value: Tensor, where: str) -> None:
    """Check that no value is infinite or no number. Raises `RefusedError`."""
    if not torch.isfinite(value).all():
        raise RefusedError(
            "tensors_not_finite", f"{where}: {name} holds values that are no numbers", ANOTHER_FILE
        )


def _sealed(path: Path, pin: PinnedFile) -> int:
    """Copy a file of the right hash to memory that can no longer be changed; returns its descriptor."""
    if pin.sha256 is None:
        raise RequestError("pin_missing", f"{pin.name} has no pin", f"Give --sha256 {pin.name}=HASH.")
    copy = os.memfd_create(pin.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _copy_pinned(path, pin, copy)
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, SEALS)
        os.lseek(copy, 0, os.SEEK_SET)
    except OSError as error:
        os.close(copy)
        raise StorageError(
            "no_memory", f"{path}: {error.strerror}", "Use a machine with more memory."
        ) from error
    except BaseException:
        os.close(copy)
        raise
    return copy


def _copy_pinned(path: Path, pin: PinnedFile, copy: int) -> None:
    digest, size = hashlib.sha256(), 0
    with os.fdopen(open_regular(path), "rb") as file, os.fdopen(os.dup(copy), "wb") as sealed:
        while chunk := file.read(CHUNK):
            size += len(chunk)
            if size > pin.limit:
                raise RefusedError(
                    "too_large", f"{path} has over {pin.limit} bytes; it was not opened", ANOTHER_FILE
                )
            digest.update(chunk)
            sealed.write(chunk)
    if digest.hexdigest() != pin.sha256:
        found = f"has SHA-256 {digest.hexdigest()} ({size} bytes), pinned is {pin.sha256}"
        raise RefusedError("hash_mismatch", f"{path} {found}; it was not opened", ANOTHER_FILE)


def _check_zip(path: Path, descriptor: int) -> None:
    # torch writes its records uncompressed, or it could not map them: a file with others is made to swell.
    try:
        with os.fdopen(os.dup(descriptor), "rb") as copy, zipfile.ZipFile(copy) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise RefusedError(
            "checkpoint_unreadable", f"{path} is not a zip file: {error}", ANOTHER_FILE
        ) from error
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise RefusedError("checkpoint_unreadable", f"{path} has compressed records", ANOTHER_FILE)


def _some(names: set[str]) -> str:
    shown = sorted(names)[:SHOWN]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    unsupported = re.search(r"(Unsupported global: GLOBAL \S+|Unsupported \w+ \S+)", text)
    return unsupported[1] if unsupported else text[:160].rstrip(".")
