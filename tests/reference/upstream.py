"""The other side of the comparison: tortoise-tts 3.0.0, offline, on weights and inputs that it is given.

Runs in .reference, where nothing of ours is installed (tools/reference.sh):

    .reference/bin/python tests/reference/upstream.py weights JOB   # random ones, in upstream's own files
    .reference/bin/python tests/reference/upstream.py answers JOB   # what it makes of the job's inputs

A job is a folder with job.json and inputs.safetensors (tests/reference/jobs.py writes them). Computations are
upstream's own functions and methods; what is replaced around them is the download, the random start of
clips, and a device that 3.0.0 hard-codes.
"""

from __future__ import annotations

import json
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it
from tortoise import api
from tortoise.models.autoregressive import LearnedPositionEmbeddings
from tortoise.models.hifigan_decoder import HifiganGenerator

Job = dict[str, Any]


def dimensions(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Translate our names of dimensions to the arguments of upstream's classes."""
    gpt, clvp, cvvp = config["autoregressive"], config["clvp"], config["cvvp"]
    diffusion, vocoder = config["diffusion"], config["vocoder"]
    return {
        "UnifiedVoice": {
            "layers": gpt["layers"],
            "model_dim": gpt["dim"],
            "heads": gpt["heads"],
            "number_mel_codes": gpt["mel_codes"],
            "start_mel_token": gpt["start_code"],
            "stop_mel_token": gpt["stop_code"],
        },
        "CLVP": {
            **dict.fromkeys(("dim_text", "dim_speech", "dim_latent"), clvp["dim"]),
            **dict.fromkeys(("text_enc_depth", "speech_enc_depth"), clvp["depth"]),
            **dict.fromkeys(("text_heads", "speech_heads"), clvp["heads"]),
            "num_speech_tokens": clvp["speech_codes"],
        },
        "CVVP": {
            "model_dim": cvvp["dim"],
            "transformer_heads": cvvp["heads"],
            "mel_codes": cvvp["speech_codes"],
            **dict.fromkeys(("conditioning_enc_depth", "speech_enc_depth"), cvvp["depth"]),
        },
        "DiffusionTts": {
            "model_channels": diffusion["channels"],
            "num_layers": diffusion["layers"],
            "num_heads": diffusion["heads"],
            "in_latent_channels": diffusion["latent_channels"],
            "in_tokens": gpt["mel_codes"] - 1,
        },
        "UnivNetGenerator": {
            "noise_dim": vocoder["noise_channels"],
            "channel_size": vocoder["channels"],
            "dilations": vocoder["dilations"],
            "strides": vocoder["strides"],
        },
    }


@contextmanager
def resized(job: Job) -> Iterator[None]:
    """Have api.py build networks of the job's dimensions; at full size its own stay as they are."""
    if job["size"] == "full":
        yield
        return
    classes: dict[str, Callable[..., nn.Module]] = {}
    for name, wanted in dimensions(job["config"]).items():
        original = getattr(api, name)
        classes[name] = lambda *a, original=original, wanted=wanted, **k: original(*a, **{**k, **wanted})
    widths = {1024: "autoregressive", 2048: "diffusion"}
    converter, voice = api.RandomLatentConverter, job["config"]["random_voice"]
    classes["RandomLatentConverter"] = lambda channels: converter(voice[widths[channels]])
    with patch.multiple(api, **classes):
        yield


def load(job: Job, *, kv_cache: bool = False) -> api.TextToSpeech:
    """Build upstream's TextToSpeech from the job's checkpoints, with the networks that it loads late."""
    checkpoints = Path(job["checkpoints"])
    api.get_model_path = lambda name, _=None: str(checkpoints / name)
    with resized(job):
        speech = api.TextToSpeech(
            autoregressive_batch_size=job.get("batch"),
            enable_redaction=False,
            kv_cache=kv_cache,
            tokenizer_vocab_file=None,
        )
        if job.get("all", True):
            speech.load_cvvp()
            speech.get_random_conditioning_latents()
    return speech


def load_hifigan(job: Job) -> HifiganGenerator:
    """Build the generator as api_fast.py does, whose constructor would build all the rest again."""
    config = job["config"]["hifigan"]
    kernels = config["kernels"]
    generator = HifiganGenerator(
        in_channels=config["latent_channels"],
        out_channels=1,
        resblock_type="1",
        resblock_dilation_sizes=[config["dilations"]] * len(kernels),
        resblock_kernel_sizes=kernels,
        upsample_kernel_sizes=config["upsample_kernels"],
        upsample_initial_channel=config["channels"],
        upsample_factors=config["strides"],
        cond_channels=config["voice_channels"],
    ).eval()
    generator.load_state_dict(torch.load(Path(job["checkpoints"], "hifidecoder.pth")), strict=False)
    return generator


class Missing:
    """Stands for a checkpoint that is yet to be written."""

    def __init__(self, path: str | Path, key: str | None = None) -> None:
        self.path, self.key = Path(path), key

    def __getitem__(self, key: str) -> Missing:
        return Missing(self.path, key)


def write_checkpoints(job: Job) -> None:
    """Write every checkpoint that upstream asks for.

    Values are upstream's own initial ones with noise, so that none is exactly zero or one, and HiFi-GAN's
    filters twice as large, so that sound comes through. No start code is ever drawn, as from a trained model;
    stop codes are drawn as often as `stop_bias` makes them.
    """

    def draw_and_save(module: nn.Module, missing: Missing, **_: object) -> None:
        generator = torch.Generator().manual_seed(zlib.crc32(missing.path.name.encode()))
        for name, parameter in module.named_parameters():
            if isinstance(module, HifiganGenerator) and name.endswith("weight_g"):
                parameter.mul_(2)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=job["noise"])
        if hasattr(module, "start_mel_token"):
            module.mel_head.bias[module.start_mel_token] = -100
            module.mel_head.bias[module.stop_mel_token] = job["stop_bias"]
        state = module.state_dict()
        torch.save({missing.key: state} if missing.key else state, missing.path)

    Path(job["checkpoints"]).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(job["seed"])
    with (
        patch.object(torch, "load", lambda path, **_: Missing(path)),
        patch.object(nn.Module, "load_state_dict", draw_and_save),
    ):
        load(job)
        load_hifigan(job)


class Comparison:
    """Upstream's stages, one after the other; each works on what upstream's earlier ones gave."""

    def __init__(self, job: Job, inputs: dict[str, Tensor]) -> None:
        self.job, self.inputs = job, inputs
        self.speech = load(job)
        self.model = self.speech.autoregressive
        self.text = F.pad(inputs["text"], (0, 1))  # as tts() hands it to every network
        self.made: dict[str, Tensor] = {}

    def run(self) -> dict[str, Tensor]:
        for stage in (self.conditioning, self.codes, self.ranking, self.sound, self.whole):
            start = time.perf_counter()
            stage()
            print(f"upstream: {stage.__name__} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        return {name: value.detach().contiguous().clone() for name, value in self.made.items()}

    def conditioning(self) -> None:
        clips = [self.inputs[name] for name in sorted(self.inputs) if name.startswith("clip")]
        with patch.object(random, "randint", lambda low, _: low):
            self.voice, self.shape, self.mels, wide = self.speech.get_conditioning_latents(
                clips, return_mels=True
            )
        self.made |= {"mel.autoregressive": self.mels[0], "mel.diffusion": wide[0]}
        self.made |= {"voice.autoregressive": self.voice, "voice.diffusion": self.shape}
        torch.manual_seed(self.job["seed"])
        first, second = self.speech.get_random_conditioning_latents()
        self.made |= {"random.autoregressive": first, "random.diffusion": second}

    def forward(self, codes: Tensor, **options: bool) -> Any:
        lengths = torch.tensor([self.text.shape[1]]), torch.tensor([codes.shape[1] * 1024])
        return self.model(
            self.voice, self.text, lengths[0], codes.clone(), lengths[1], clip_inputs=False, **options
        )

    def draw(self, case: dict[str, Any]) -> Tensor:
        torch.manual_seed(case["seed"])
        codes = self.model.inference_speech(
            self.voice, self.text, max_generate_length=self.job["codes"], **case["generate"]
        )
        return F.pad(codes, (0, self.job["codes"] - codes.shape[1]), value=self.model.stop_mel_token)

    def codes(self) -> None:
        forced = self.inputs["forced"]
        self.made["logits"] = self.forward(forced)[2][0, :, : forced.shape[1]].T
        for name, case in self.job["cases"].items():
            self.made[f"codes.{name}"] = self.draw(case)
        case = self.job["cases"][self.job["cached"]]
        asked: list[int] = []
        position = LearnedPositionEmbeddings.get_fixed_embedding

        def shifted(by: int) -> Callable[..., Tensor]:
            def look_up(module: nn.Module, index: int, device: torch.device) -> Tensor:
                asked.append(index + by)
                return position(module, index + by, device)

            return look_up

        self.model.inference_model.kv_cache = True
        for name, by in (("cached", 0), ("cached_one_back", -1)):
            asked.clear()
            with patch.object(LearnedPositionEmbeddings, "get_fixed_embedding", shifted(by)):
                self.made[f"codes.{name}"] = self.draw(case)
            self.made[f"positions.{name}"] = torch.tensor(asked)
        self.model.inference_model.kv_cache = False

    def settle(self, codes: Tensor) -> Tensor:
        stop = self.model.stop_mel_token
        padded = F.pad(codes, (0, self.job["padded"] - codes.shape[1]), value=stop)
        return torch.stack(
            [api.fix_autoregressive_output(row.clone(), stop, complain=False) for row in padded]
        )

    def ranking(self) -> None:
        self.made["settled.tails"] = self.settle(self.inputs["tails"])
        settled = self.settle(self.made[f"codes.{self.job['ranked']}"])
        self.made["settled"] = settled
        self.made["clvp"] = self.speech.clvp(self.text.repeat(len(settled), 1), settled, return_loss=False)
        clips = [mel.repeat(len(settled), 1, 1) for mel in self.mels[0].unsqueeze(1)]
        self.made["cvvp"] = sum(self.speech.cvvp(clip, settled, return_loss=False) for clip in clips) / len(
            clips
        )

    def sound(self) -> None:
        latents = self.forward(self.made["settled"][:1], return_latent=True)
        self.made["latents"] = latents
        frames = latents.shape[1] * 4 * 24000 // 22050
        network = self.speech.diffusion
        aligned = network.timestep_independent(latents, self.shape, frames, False)
        self.made["aligned"] = aligned
        for name, case in self.job["diffusion"].items():
            diffuser = api.load_discrete_vocoder_diffuser(
                desired_diffusion_steps=case["steps"], cond_free=case["cond_free"], cond_free_k=case["k"]
            )
            torch.manual_seed(self.job["seed"])
            self.made[f"mel.{name}"] = api.do_spectrogram_diffusion(
                network, diffuser, latents, self.shape, temperature=case["temperature"], verbose=False
            )
        # Upstream has DDIM, though no way to ask for it.
        torch.manual_seed(self.job["seed"])
        embeddings = {"precomputed_aligned_embeddings": aligned}
        ddim = diffuser.ddim_sample_loop(network, (1, 100, frames), model_kwargs=embeddings)
        self.made["mel.ddim"] = api.denormalize_tacotron_mel(ddim)
        torch.manual_seed(self.job["seed"])
        self.made["univnet"] = self.speech.vocoder.inference(self.made["mel.plain"])
        to = Tensor.to
        with patch.object(Tensor, "to", lambda x, *a, **k: x if a == ("cuda",) else to(x, *a, **k)):
            self.made["hifigan"] = load_hifigan(self.job).inference(latents, self.voice)

    def whole(self) -> None:
        case = self.job["whole"]
        clips = [self.inputs[name] for name in sorted(self.inputs) if name.startswith("clip")]
        step = api.SpacedDiffusion.p_sample

        def without_idle_noise(
            self: Any, model: Any, x: Tensor, t: Tensor, **options: Any
        ) -> dict[str, Tensor]:
            # The last step draws noise to multiply it by zero. Taken back, so that the vocoder's is ours.
            state = torch.get_rng_state()
            out: dict[str, Tensor] = step(self, model, x, t, **options)
            if not t.any():
                torch.set_rng_state(state)
            return out

        with (
            patch.object(api.SpacedDiffusion, "p_sample", without_idle_noise),
            patch.object(random, "randint", lambda low, _: low),
        ):
            made = self.speech.tts(
                case["text"],
                voice_samples=clips,
                verbose=False,
                use_deterministic_seed=case["seed"],
                **case["options"],
            )
        self.made["whole"] = made.flatten()


@torch.no_grad()
def main() -> None:
    command, folder = sys.argv[1], Path(sys.argv[2])
    job: Job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    if command == "weights":
        write_checkpoints(job)
        return
    tokenizer = api.VoiceBpeTokenizer()
    tokens = [tokenizer.encode(text) for text in job["texts"]]
    (folder / "tokens.json").write_text(json.dumps(tokens))
    save_file(Comparison(job, load_file(folder / "inputs.safetensors")).run(), folder / "answers.safetensors")


if __name__ == "__main__":
    main()
