"""Where a build reads from and writes to."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from pathlib import Path


class NotACheckoutError(Exception):
    """The command runs from an installed package, which lacks the Packer template and the roles."""


@dataclass(frozen=True)
class Layout:
    """Folders of one build.

    Attributes:
        root: the checkout.
        build: everything that a build makes; safe to delete when no build runs.
    """

    root: Path
    build: Path

    @classmethod
    def of_checkout(cls) -> Layout:
        """Find the checkout that this package is imported from.

        Raises:
            NotACheckoutError: there is no Packer template beside the package.
        """
        root = Path(__file__).resolve().parents[2]
        if not (root / "packer").is_dir():
            raise NotACheckoutError(f"{root} has no packer/ folder: run `testudo image` from a git checkout")
        return cls(root, root / "build")

    @property
    def cache(self) -> Path:
        """Trees and verdicts that later builds use again, each named by its key."""
        return self.build / "cache"

    @property
    def temporary(self) -> Path:
        """Scratch of the running build; cleanup removes it whole."""
        return self.build / "tmp"

    @property
    def logs(self) -> Path:
        """One log for each step of the last build."""
        return self.build / "logs"

    @property
    def wheelhouse(self) -> Path:
        """Wheels that the image installs from, and the lock that names them."""
        return self.build / "wheelhouse"

    @property
    def weights(self) -> Path:
        """Published files that a user has put here for an image that speaks; a build works without."""
        return self.build / "weights"

    @property
    def tree(self) -> Path:
        """The root file system that the play works on."""
        return self.build / "tree"

    @property
    def containers_conf(self) -> Path:
        """What podman needs to run systemd on this host, found by probing."""
        return self.build / "containers.conf"

    @property
    def image(self) -> Path:
        """The finished disk."""
        return self.build / "image" / f"testudo-{distribution_version('testudo')}-amd64.qcow2"

    @property
    def timings(self) -> Path:
        """One JSON object a line for each finished step of the running build."""
        return self.build / "steps.jsonl"
