"""What both sides are given: sizes, weights, inputs; and how upstream is asked."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from appliance.provenance import perth
from appliance.speech import bundle as bundles
from appliance.speech.artificial_voice import speech_like
from appliance.speech.config import PUBLISHED, ModelConfig, SynthesisOptions
from appliance.speech.networks import Networks
from appliance.speech.tiny import CONFIG as TINY

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".reference"
SCRIPT = Path(__file__).with_name("upstream.py")
DATA = ENVIRONMENT / "lib/python3.11/site-packages/tortoise/data"

SEED = 20_261_124
CLIP_RATE = 22_050
# Shorter than what is heard of a clip, exactly as long, and longer.
CLIP_SECONDS = (2.5, 6.0, 8.0)
# 29 tokens, as in the benchmark.
TEXT = "The tortoise keeps its shield up in formations."

# Where upstream keeps the parameters of our networks: file and, if it holds several networks, the key.
CHECKPOINTS: Mapping[str, tuple[str, str | None]] = {
    "autoregressive": ("autoregressive.pth", None),
    "clvp": ("clvp2.pth", None),
    "diffusion": ("diffusion_decoder.pth", None),
    "vocoder": ("vocoder.pth", "model_g"),
    "hifigan": ("hifidecoder.pth", None),
    "cvvp": ("cvvp.pth", None),
    "random_voice_autoregressive": ("rlg_auto.pth", None),
    "random_voice_diffusion": ("rlg_diffuser.pth", None),
}


@dataclass(frozen=True)
class Size:
    """Dimensions, and how much of each stage is compared at them."""

    name: str
    config: ModelConfig
    noise: float
    stop_bias: float
    codes: int
    candidates: int
    steps: int
    threads: int

    @property
    def padded(self) -> int:
        """To how many codes candidates are filled up to be ranked; upstream's 500 at default options."""
        return self.codes + 20

    @property
    def folder(self) -> Path:
        """Where the weights are kept between runs; they depend on nothing but this description."""
        return ROOT / "build/reference" / self.name


SIZES = {
    "tiny": Size("tiny", TINY.model_copy(update={"pace": None}), 0.1, 2.0, 60, 8, 10, 1),
    "full": Size("full", PUBLISHED, 0.02, 2.0, 16, 2, 3, 2),
}


@dataclass(frozen=True)
class Draw:
    """How codes are drawn, for both sides: options of ours that stand for upstream's arguments."""

    seed: int
    options: SynthesisOptions

    def upstream(self) -> dict[str, Any]:
        """Return the arguments of upstream's `inference_speech`. It names no top_k, which is then 50."""
        wanted = asdict(self.options)
        if self.options.top_k == 1:
            greedy = {"do_sample": False, "repetition_penalty": wanted["repetition_penalty"]}
            return greedy | {"num_return_sequences": self.options.candidates}
        named = {name: wanted[name] for name in ("temperature", "top_p", "repetition_penalty")}
        return {"do_sample": True, "num_return_sequences": self.options.candidates, **named}


def draws(size: Size) -> dict[str, Draw]:
    """Return the ways of drawing that are compared, by name."""
    common = SynthesisOptions(max_mel_tokens=size.padded)
    options = {
        "greedy": replace(common, candidates=1, top_k=1),
        "greedy_unpenalised": replace(common, candidates=1, top_k=1, repetition_penalty=1),
        "default": replace(common, candidates=size.candidates),
        "hot": SynthesisOptions(
            candidates=size.candidates, temperature=1.6, top_p=0.97, repetition_penalty=1
        ),
        "narrow": replace(common, candidates=1, temperature=0.5, top_p=0.3, repetition_penalty=8),
    }
    return {name: Draw(SEED + index, chosen) for index, (name, chosen) in enumerate(options.items())}


# Which of them is drawn with upstream's cache as well, and which is ranked and becomes sound.
CACHED, RANKED = "greedy", "hot"

DIFFUSIONS = {
    "plain": {"cond_free": False, "k": 2.0, "temperature": 1.0},
    "cond_free": {"cond_free": True, "k": 2.0, "temperature": 1.0},
    "cooler": {"cond_free": True, "k": 0.7, "temperature": 0.6},
}


def whole(size: Size) -> SynthesisOptions:
    """Return the options with which everything is run in one go, text and clips to samples."""
    return SynthesisOptions(candidates=size.candidates, diffusion_steps=size.steps, max_mel_tokens=size.codes)


def diffusion(size: Size, name: str) -> SynthesisOptions:
    """Return the options of one of `DIFFUSIONS`, or of the last of them by DDIM."""
    case = DIFFUSIONS.get(name, DIFFUSIONS["cooler"])
    ddim = name == "ddim"
    return SynthesisOptions(
        diffusion_steps=size.steps,
        cond_free=bool(case["cond_free"]),
        cond_free_k=case["k"],
        # Upstream's DDIM draws its own first noise, which has no temperature.
        diffusion_temperature=1.0 if ddim else case["temperature"],
        sampler="ddim" if ddim else "ddpm",
    )


def inputs(size: Size, tokens: list[int]) -> dict[str, Tensor]:
    """Return what upstream is given besides weights: clips, text, codes to judge, endings to mend."""
    config = size.config.autoregressive
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randint(0, config.start_code, (8, size.codes), generator=generator)
    for row, stop in enumerate(
        (None, 0, 1, size.codes - 1, size.codes - 2, size.codes - 3, size.codes // 2, 5)
    ):
        if stop is not None:
            rows[row, stop] = config.stop_code
    rows[7, 9:] = config.stop_code
    clips = {
        f"clip{index}": torch.from_numpy(speech_like(seconds, CLIP_RATE, index)).unsqueeze(0)
        for index, seconds in enumerate(CLIP_SECONDS)
    }
    forced = torch.randint(0, config.start_code, (1, size.codes), generator=generator)
    return {"text": torch.tensor([tokens]), "forced": forced, "tails": rows, **clips}


def describe_weights(size: Size) -> dict[str, Any]:
    """Return what the weights depend on, which is the job for upstream.py to make them."""
    return {
        "size": size.name,
        "config": size.config.model_dump(mode="json"),
        "checkpoints": str(size.folder / "upstream"),
        "seed": SEED,
        "noise": size.noise,
        "stop_bias": size.stop_bias,
        "threads": size.threads,
    }


def describe(size: Size, texts: list[str]) -> dict[str, Any]:
    """Return the job for upstream.py to answer."""
    options = whole(size)
    return {
        **describe_weights(size),
        "texts": texts,
        "codes": size.codes,
        "padded": size.padded,
        "cases": {
            name: {"seed": draw.seed, "generate": draw.upstream()} for name, draw in draws(size).items()
        },
        "cached": CACHED,
        "ranked": RANKED,
        "diffusion": {name: {"steps": size.steps, **case} for name, case in DIFFUSIONS.items()},
        # One batch, for upstream draws the candidates of each batch anew.
        "batch": options.candidates,
        "whole": {
            "text": TEXT,
            "seed": SEED,
            "options": {
                "num_autoregressive_samples": options.candidates,
                "max_mel_tokens": options.max_mel_tokens,
                "diffusion_iterations": options.diffusion_steps,
                "cond_free": options.cond_free,
            },
        },
    }


def ask(command: str, job: dict[str, Any], folder: Path) -> None:
    """Run upstream.py on a job in a folder, which may hold inputs. Raises what subprocess raises."""
    subprocess.run([ROOT / "tools/reference.sh"], check=True)
    (folder / "job.json").write_text(json.dumps(job))
    python = ENVIRONMENT / "bin/python"
    subprocess.run(
        [python, "-W", "ignore", SCRIPT, command, folder], check=True, cwd=ROOT, stdout=subprocess.DEVNULL
    )


def make_weights(size: Size) -> Path:
    """Make random weights in upstream's files, and a bundle of the same; return the bundle's folder.

    Full size takes a minute and 8 GB in build/reference/full, and is kept for the next time.
    """
    bundle, made = size.folder / "bundle", size.folder / "job.json"
    job = describe_weights(size)
    if not (bundle / bundles.MANIFEST).exists() or json.loads(made.read_text()) != job:
        shutil.rmtree(size.folder, ignore_errors=True)
        size.folder.mkdir(parents=True)
        ask("weights", job, size.folder)
        convert(size, bundle)
    return bundle


def convert(size: Size, folder: Path) -> None:
    """Write a bundle from upstream's checkpoints, with upstream's own tokenizer and mel norms."""
    folder.mkdir(exist_ok=True)
    for name, network in Networks(size.config).named():
        file, key = CHECKPOINTS[name]
        state = torch.load(size.folder / "upstream" / file, mmap=True, weights_only=True)
        state = state[key] if key else state
        wanted = network.state_dict().keys()
        save_file({tensor: state[tensor].clone() for tensor in wanted}, folder / f"{name}.safetensors")
    norms = torch.load(DATA / "mel_norms.pth", weights_only=True)
    save_file({"mel_norms": norms}, folder / bundles.MEL_NORMS)
    (folder / bundles.TOKENIZER).write_bytes((DATA / "tokenizer.json").read_bytes())
    perth.convert(perth.installed_checkpoint(), folder / bundles.WATERMARK)
    paths = bundles.required(size.config)
    manifest = bundles.Manifest(
        id=f"reference-{size.name}",
        title="Random weights",
        notice="Random weights for comparison with upstream.",
        intelligible=False,
        licence="Apache-2.0",
        source="tests/reference",
        config=size.config,
        files=tuple(
            bundles.describe(folder, path, licence="Apache-2.0", source="tests/reference") for path in paths
        ),
        voices=(),
    )
    bundles.write_manifest(folder, manifest)


def answers(size: Size, texts: list[str], tokens: list[int], folder: Path) -> tuple[dict[str, Tensor], Any]:
    """Return upstream's answers by name, and its tokens of the texts."""
    save_file(inputs(size, tokens), folder / "inputs.safetensors")
    ask("answers", describe(size, texts), folder)
    return load_file(folder / "answers.safetensors"), json.loads((folder / "tokens.json").read_text())
