"""Text to codes: a GPT-2 over [voice, text, codes], upstream's `UnifiedVoice` (models/autoregressive.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech import drawing
from appliance.speech.attention import AttentionBlock
from appliance.speech.config import AutoregressiveConfig
from appliance.speech.decoding import Cache
from appliance.speech.dense import Convolution, Linear, Projection
from appliance.speech.drawing import Draw, Drawn

__all__ = ["MEL_BANDS", "Autoregressive", "Draw", "Drawn", "Projection"]

MEL_BANDS = 80
CONDITIONING_BLOCKS = 6
# The model was never trained on longer texts (the assertion in upstream's api.py).
MAX_TEXT_TOKENS = 400


class SelfAttention(nn.Module):
    """Causal multi-head attention, optionally over a cache."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = Projection(dim, 3 * dim)
        self.c_proj = Projection(dim, dim)

    def forward(self, x: Tensor, layer: int, cache: Cache | None) -> Tensor:
        """Attend from x (batch, n, dim) to itself, or with n = 1 to all that the layer has in the cache."""
        batch, length, dim = x.shape
        projected = self.c_attn(x)
        if x.device.type == "cpu":
            # One query at a time against bfloat16 keys is several times slower than against wider ones.
            projected = projected.float()
        split = projected.view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind()
        mask = None
        if cache is not None:
            cached = cache.extend(layer, key, value)
            if length == 1:
                (key, value), mask = cached, cache.mask(query)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=length > 1)
        out: Tensor = self.c_proj(mixed.transpose(1, 2).reshape(batch, length, dim))
        return out


class FeedForward(nn.Module):
    """GPT-2's two-layer perceptron."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.c_fc = Projection(dim, 4 * dim, gelu=True)
        self.c_proj = Projection(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the perceptron of x, same shape."""
        out: Tensor = self.c_proj(self.c_fc(x))
        return out


class Block(nn.Module):
    """One pre-normalised transformer layer."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, heads)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim)

    def forward(self, x: Tensor, layer: int, cache: Cache | None) -> Tensor:
        """Return the output of this, the layer-th block, (batch, n, dim)."""
        x = x + self.attn(self.ln_1(x), layer, cache)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    """The stack of layers and its last norm (`GPT2Model` without embeddings)."""

    def __init__(self, layers: int, dim: int, heads: int) -> None:
        super().__init__()
        self.h = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(dim)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the hidden states (batch, n, dim) of embeddings x, keeping keys and values in a cache."""
        for index, block in enumerate(self.h):
            x = block(x, index, cache)
        out: Tensor = self.ln_f(x)
        return out


class PositionEmbedding(nn.Module):
    """A learned vector per position."""

    def __init__(self, positions: int, dim: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(positions, dim)

    def forward(self, start: int, length: int) -> Tensor:
        """Return the vectors (length, dim) of the positions from `start` on."""
        return self.emb.weight[start : start + length]

    def at(self, position: Tensor) -> Tensor:
        """Return the vector (1, dim) of a position (1,) that is known only on the device."""
        vector: Tensor = self.emb(position)
        return vector


class ConditioningEncoder(nn.Module):
    """A clip's mel spectrogram to one vector: the first time step after attention over all of them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.init = Convolution(MEL_BANDS, dim, 1)
        self.attn = nn.Sequential(*(AttentionBlock(dim, heads) for _ in range(CONDITIONING_BLOCKS)))

    def forward(self, mels: Tensor) -> Tensor:
        """Return (clips, dim) for mels (clips, 80, frames)."""
        out: Tensor = self.attn(self.init(mels.mT).mT.float())[:, :, 0]
        return out


class Autoregressive(nn.Module):
    """Draws codes for a text in a voice, and gives the latents from which the diffusion network works."""

    # In upstream's checkpoint, not needed to speak: the head for the text loss, and masks that older
    # versions of transformers stored with each layer.
    UNUSED = (r"text_head\..*", r"gpt\.h\.\d+\.attn\.(masked_)?bias")

    # A step of decoding has a row per candidate.
    TYPICAL_ROWS = 16

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__()
        self.config = config
        self.conditioning_encoder = ConditioningEncoder(config.dim, config.heads)
        self.text_embedding = nn.Embedding(config.text_tokens + 1, config.dim)
        self.mel_embedding = nn.Embedding(config.mel_codes, config.dim)
        self.gpt = Transformer(config.layers, config.dim, config.heads)
        self.mel_pos_embedding = PositionEmbedding(config.mel_positions, config.dim)
        self.text_pos_embedding = PositionEmbedding(config.text_positions, config.dim)
        self.final_norm = nn.LayerNorm(config.dim)
        self.mel_head = Linear(config.dim, config.mel_codes)

    def condition(self, mels: Tensor) -> Tensor:
        """Return the voice (1, dim) heard in mels (clips, 80, frames): the mean over the clips."""
        voices: Tensor = self.conditioning_encoder(mels)
        return voices.mean(dim=0, keepdim=True)

    def prompt(self, voice: Tensor, text: Tensor) -> Tensor:
        """Return the embeddings (1, n + 4, dim) of a voice (1, dim) and text tokens (1, n).

        Upstream pads the tokens with two zeros (its stop token): one in api.py, one in `inference_speech`.
        Raises `ValueError` if the text is longer than any that the model was trained on.
        """
        if text.shape[1] + 1 >= MAX_TEXT_TOKENS:
            raise ValueError(f"a text must have fewer than {MAX_TEXT_TOKENS - 1} tokens")
        text = F.pad(F.pad(text, (0, 2)), (1, 0), value=self.config.text_tokens)
        embedded = self.text_embedding(text) + self.text_pos_embedding(0, text.shape[1])
        return torch.cat([voice.unsqueeze(1), embedded], dim=1)

    def embed(self, codes: Tensor, position: int) -> Tensor:
        """Return the embeddings (batch, n, dim) of codes (batch, n) of which the first is at `position`."""
        out: Tensor = self.mel_embedding(codes) + self.mel_pos_embedding(position, codes.shape[1])
        return out

    def latents(self, prompt: Tensor, codes: Tensor) -> Tensor:
        """Return the hidden state (1, m, dim) that predicts each of codes (1, m): one pass, no cache."""
        inputs = F.pad(codes[:, :-1], (1, 0), value=self.config.start_code)
        hidden = self.gpt(torch.cat([prompt, self.embed(inputs, 0)], dim=1))[:, prompt.shape[1] :]
        out: Tensor = self.final_norm(hidden)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (batch, codes) of the codes that hidden states (batch, dim) predict."""
        out: Tensor = self.mel_head(hidden)
        return out.float()

    def generate(self, draws: Sequence[Draw]) -> list[Drawn | None]:
        """Draw all candidates of all draws as one batch. None stands for a draw that was cancelled.

        A draw is left out of the batch within one step of its `cancelled()` turning true.
        """
        return drawing.generate(self, draws)

    def stream(self, draw: Draw) -> Iterator[tuple[int, Tensor]]:
        """Yield each code of a draw's only candidate with its latent (1, dim), up to the calm at the end.

        Raises `Cancelled` within one step of `draw.cancelled()` turning true.
        """
        return drawing.stream(self, draw)

    def stream_batch(self, draws: Sequence[Draw]) -> Iterator[list[tuple[int, int, Tensor]]]:
        """Yield, for each step, (index of the draw, code, latent (1, dim)) of the draws that go on.

        Each draw has one candidate. One that has ended or was cancelled is missing from the following steps.
        """
        return drawing.stream_batch(self, draws)
