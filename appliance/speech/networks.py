"""The networks of a bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from appliance.speech.autoregressive import Autoregressive
from appliance.speech.clvp import Clvp
from appliance.speech.config import ModelConfig
from appliance.speech.cvvp import Cvvp
from appliance.speech.diffusion import Diffusion
from appliance.speech.errors import BundleError
from appliance.speech.hifigan import HifiGan
from appliance.speech.random_voice import RandomVoice
from appliance.speech.univnet import UnivNet

Network = Autoregressive | Clvp | Diffusion | UnivNet | HifiGan | Cvvp | RandomVoice


class _Uninitialised(TorchFunctionMode):
    """Leaves out initial values, which loading replaces: drawn on the meta device they need torch's compiler.

    Its import doubles the time to start.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `function` unless it is one of `torch.nn.init`."""
        if getattr(function, "__module__", None) == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))


class Networks:
    """The networks of a configuration, on the meta device until `load` gives them their parameters.

    Those that the configuration lacks are None.
    """

    def __init__(self, config: ModelConfig) -> None:
        with torch.device("meta"), _Uninitialised():
            self.autoregressive = Autoregressive(config.autoregressive)
            self.clvp = Clvp(config.clvp)
            self.diffusion = Diffusion(config.diffusion)
            self.vocoder = UnivNet(config.vocoder)
            self.hifigan = HifiGan(config.hifigan) if config.hifigan else None
            self.cvvp = Cvvp(config.cvvp) if config.cvvp else None
            widths = config.random_voice
            self.random_voice_autoregressive = RandomVoice(widths.autoregressive) if widths else None
            self.random_voice_diffusion = RandomVoice(widths.diffusion) if widths else None

    def named(self) -> Iterator[tuple[str, Network]]:
        """Yield each network that exists with its name, which is that of its file without suffix."""
        yield from ((name, network) for name, network in vars(self).items() if network is not None)

    def load(self, bundle: Path, device: torch.device) -> None:
        """Load the parameters from a verified bundle. Raises `BundleError` unless exactly these are there.

        Tensors of upstream's checkpoints that a network lists as unused are dropped.
        """
        for name, network in self.named():
            path = bundle / f"{name}.safetensors"
            state = load_file(path, device=str(device))
            for key in [key for key in state if any(re.fullmatch(unused, key) for unused in network.UNUSED)]:
                del state[key]
            try:
                network.load_state_dict(state, strict=True, assign=True)
            except RuntimeError as error:
                raise BundleError(
                    f"{path} does not hold the parameters of the model in its manifest"
                ) from error
            network.requires_grad_(requires_grad=False).eval()
