"""A set of files like the published one, at tiny size, and pins for it."""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from appliance.speech.bundle import read_manifest

NETWORK_FILES = {
    "autoregressive.pth": "autoregressive",
    "clvp2.pth": "clvp",
    "diffusion_decoder.pth": "diffusion",
    "vocoder.pth": "vocoder",
    "hifidecoder.pth": "hifigan",
    "rlg_auto.pth": "random_voice_autoregressive",
    "rlg_diffuser.pth": "random_voice_diffusion",
    "cvvp.pth": "cvvp",
}
# What upstream's checkpoints hold beyond what speaks.
UNUSED: dict[str, dict[str, torch.Tensor]] = {
    "autoregressive.pth": {
        "text_head.weight": torch.ones(256, 48),
        "gpt.h.0.attn.masked_bias": torch.ones(()),
    },
    "clvp2.pth": {"text_transformer.transformer.attn_layers.rotary_pos_emb.inv_freq": torch.ones(16)},
    "diffusion_decoder.pth": {"mel_head.weight": torch.ones(9, 48, 3)},
}
ARCHIVE = "tortoise-tts-3.0.0.tar.gz"
MEMBERS = "tortoise-tts-3.0.0/tortoise/data"


@dataclass
class Published:
    """A folder of downloads and a pins file, which `pin` brings up to date."""

    folder: Path
    pins: Path
    content: dict[str, Any]

    @property
    def names(self) -> list[str]:
        return [file["name"] for file in self.content["files"]]

    def entry(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(file for file in self.content["files"] if file["name"] == name)
        return found

    def pin(self, *names: str) -> None:
        """Pin files as they are now, whatever is in them."""
        for name in names:
            data = (self.folder / name).read_bytes()
            self.entry(name).update(sha256=hashlib.sha256(data).hexdigest(), limit=len(data))
        self.pins.write_text(yaml.safe_dump(self.content))

    def change(self, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        """Load a checkpoint, change its table of tensors in place, save and pin it."""
        content = torch.load(self.folder / name, weights_only=True)
        change(content["model_g"] if name == "vocoder.pth" else content)
        torch.save(content, self.folder / name)
        self.pin(name)


def make(folder: Path, bundle: Path) -> Published:
    """Write checkpoints with a bundle's tensors, named and nested as upstream's are, and pin them."""
    folder.mkdir(parents=True)
    manifest = read_manifest(bundle)
    files: list[dict[str, Any]] = []
    for name, network in NETWORK_FILES.items():
        if not (bundle / f"{network}.safetensors").exists():
            continue
        content: Mapping[str, Any] = load_file(bundle / f"{network}.safetensors") | UNUSED.get(name, {})
        files.append({"name": name, "network": network})
        if name == "vocoder.pth":
            content = {"model_g": content, "model_d": {"weight": torch.ones(3)}, "epoch": 7}
            files[-1]["key"] = "model_g"
        torch.save(content, folder / name)
    (folder / "tokenizer.json").write_bytes((bundle / "tokenizer.json").read_bytes())
    torch.save(load_file(bundle / "mel_norms.safetensors")["mel_norms"], folder / "mel_norms.pth")
    files += [{"name": name, "member": f"{MEMBERS}/{name}"} for name in ("tokenizer.json", "mel_norms.pth")]
    archive = archived(folder, {})
    published = Published(
        folder,
        folder.parent / f"{folder.name}.yml",
        {
            "id": "tortoise-small",
            "title": "Tortoise, small",
            "notice": "For tests.",
            "intelligible": False,
            "licence": "Apache-2.0",
            "source": "https://example.org/small",
            "archive": {
                "name": ARCHIVE,
                "url": "https://example.org/archive",
                "sha256": hashlib.sha256(archive).hexdigest(),
                "limit": len(archive),
                "unpacked_limit": 1 << 20,
            },
            "files": files,
            "config": manifest.config.model_dump(mode="json"),
        },
    )
    published.pin(*published.names)
    return published


def archived(folder: Path, more: Mapping[str, bytes]) -> bytes:
    """Return a source archive with the two small files and more members."""
    raw = io.BytesIO()
    members = {
        f"{MEMBERS}/{name}": (folder / name).read_bytes() for name in ("tokenizer.json", "mel_norms.pth")
    }
    with tarfile.open(fileobj=raw, mode="w:") as tar:
        for name, data in {**more, **members}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
