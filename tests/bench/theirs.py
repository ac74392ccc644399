"""Times tortoise-tts 3.0.0. Runs in .reference, for tests/bench/__main__.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.nn import functional as F  # noqa: N812 - everyone's name for it
from tortoise import api

from tests.bench.clock import tell, tell_memory, timed
from tests.bench.plan import CANDIDATES, CODES, SEED, STEPS, THREADS
from tests.reference import upstream

# On a CPU upstream draws its candidates one by one: 16 equal batches. In the short form one of them is timed,
# and a third of the steps of diffusion.
SHORT_STEPS = 10


@torch.no_grad()
def main() -> None:
    """Time every stage, called as upstream's `tts` calls it, on the job in the file named."""
    torch.set_num_threads(THREADS)
    job, short = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2] == "short"
    tell(begin="loading")
    speech = upstream.load(job)
    model = speech.autoregressive
    clips = [torch.tensor(clip).unsqueeze(0) for clip in job["clips"]]
    with timed("conditioning"):
        voice, shape = speech.get_conditioning_latents(clips)
    text = F.pad(torch.tensor([job["tokens"]]), (0, 1))

    batches = 1 if short else CANDIDATES
    for name, cached in (("autoregressive_cached", True), ("autoregressive", False)):
        model.inference_model.kv_cache = cached
        torch.manual_seed(SEED)
        with timed(name, CANDIDATES / batches):
            drawn = [
                model.inference_speech(
                    voice,
                    text,
                    do_sample=True,
                    top_p=0.8,
                    temperature=0.8,
                    length_penalty=1.0,
                    repetition_penalty=2.0,
                    num_return_sequences=1,
                    max_generate_length=CODES,
                    min_new_tokens=CODES,
                )
                for _ in range(batches)
            ]
    tell(name="codes", value=drawn[0][0].tolist())

    with timed("clvp", CANDIDATES / batches):
        for codes in drawn:
            speech.clvp(text, codes, return_loss=False)
    best = drawn[0]
    with timed("latents"):
        latents = model(
            voice,
            text,
            torch.tensor([text.shape[1]]),
            best,
            torch.tensor([CODES * 1024]),
            return_latent=True,
            clip_inputs=False,
        )
    steps = SHORT_STEPS if short else STEPS
    diffuser = api.load_discrete_vocoder_diffuser(desired_diffusion_steps=steps, cond_free=False)
    with timed("diffusion", STEPS / steps):
        mel = api.do_spectrogram_diffusion(speech.diffusion, diffuser, latents, shape, verbose=False)
    with timed("vocoder"):
        speech.vocoder.inference(mel)
    tell_memory()


if __name__ == "__main__":
    main()
