"""Text to codes: a GPT-2 over [voice, text, codes], upstream's `UnifiedVoice` (models/autoregressive.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from appliance.speech.attention import AttentionBlock
from appliance.speech.config import AutoregressiveConfig, SynthesisOptions
from appliance.speech.errors import Cancelled
from appliance.speech.sampling import Sampler

MEL_BANDS = 80
CONDITIONING_BLOCKS = 6
# The model was never trained on longer texts (the assertion in upstream's api.py).
MAX_TEXT_TOKENS = 400


class Projection(nn.Module):
    """A linear layer whose weight is stored (inputs, outputs), as GPT-2's checkpoints have it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return x @ weight + bias over the last axis."""
        return F.linear(x, self.weight.T, self.bias)


class Cache:
    """Keys and values of one layer for every position, allocated once: (batch, heads, positions, width)."""

    def __init__(self, batch: int, heads: int, positions: int, like: Tensor) -> None:
        width = like.shape[-1] // heads
        self._keys = like.new_empty(batch, heads, positions, width)
        self._values = torch.empty_like(self._keys)
        self._filled = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (batch or 1, heads, n, width) keys and values; return views of all that are held."""
        start, self._filled = self._filled, self._filled + keys.shape[2]
        self._keys[:, :, start : self._filled] = keys
        self._values[:, :, start : self._filled] = values
        return self._keys[:, :, : self._filled], self._values[:, :, : self._filled]


class SelfAttention(nn.Module):
    """Causal multi-head attention, optionally over a cache."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = Projection(dim, 3 * dim)
        self.c_proj = Projection(dim, dim)

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Attend from x (batch, n, dim). A cache is begun by n > 1 and continued by n = 1."""
        batch, length, dim = x.shape
        split = self.c_attn(x).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind()
        if cache is not None:
            cached = cache.extend(key, value)
            if length == 1:
                key, value = cached
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=length > 1)
        out: Tensor = self.c_proj(mixed.transpose(1, 2).reshape(batch, length, dim))
        return out


class FeedForward(nn.Module):
    """GPT-2's two-layer perceptron."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.c_fc = Projection(dim, 4 * dim)
        self.c_proj = Projection(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the perceptron of x, same shape."""
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """One pre-normalised transformer layer."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, heads)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim)

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Return the layer's output, (batch, n, dim)."""
        x = x + self.attn(self.ln_1(x), cache)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    """The stack of layers and its last norm (`GPT2Model` without embeddings)."""

    def __init__(self, layers: int, dim: int, heads: int) -> None:
        super().__init__()
        self.h = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(dim)

    def forward(self, x: Tensor, caches: list[Cache] | None = None) -> Tensor:
        """Return the hidden states (batch, n, dim) of embeddings x."""
        for index, block in enumerate(self.h):
            x = block(x, caches[index] if caches else None)
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


class ConditioningEncoder(nn.Module):
    """A clip's mel spectrogram to one vector: the first time step after attention over all of them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.init = nn.Conv1d(MEL_BANDS, dim, 1)
        self.attn = nn.Sequential(*(AttentionBlock(dim, heads) for _ in range(CONDITIONING_BLOCKS)))

    def forward(self, mels: Tensor) -> Tensor:
        """Return (clips, dim) for mels (clips, 80, frames)."""
        out: Tensor = self.attn(self.init(mels))[:, :, 0]
        return out


class Autoregressive(nn.Module):
    """Draws codes for a text in a voice, and gives the latents from which the diffusion network works."""

    # In upstream's checkpoint, not needed to speak: the head for the text loss, and masks that older
    # versions of transformers stored with each layer.
    UNUSED = (r"text_head\..*", r"gpt\.h\.\d+\.attn\.(masked_)?bias")

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
        self.mel_head = nn.Linear(config.dim, config.mel_codes)

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

    def generate(
        self,
        prompt: Tensor,
        options: SynthesisOptions,
        generator: torch.Generator,
        *,
        minimum: int,
        maximum: int,
        cancelled: Callable[[], bool],
    ) -> Tensor:
        """Draw `options.candidates` sequences of at most `maximum` codes after a prompt (1, p, dim).

        Returns (candidates, m) with m <= `maximum`; a sequence that stopped is filled up with the stop code,
        which is not drawn in the first `minimum` steps. Raises `Cancelled` within one step of `cancelled()`
        turning true.
        """
        decoder = Decoder(self, prompt, batch=options.candidates, codes=maximum)
        sampler = Sampler(self.config, options, generator)
        stop = self.config.stop_code
        codes = torch.full((options.candidates, maximum), stop, device=prompt.device)
        current = torch.full((options.candidates,), self.config.start_code, device=prompt.device)
        running = torch.ones_like(current, dtype=torch.bool)
        for step in range(maximum):
            if cancelled():
                raise Cancelled
            drawn = sampler.draw(decoder.advance(current), may_stop=step >= minimum)
            current = torch.where(running, drawn, stop)
            codes[:, step] = current
            running &= current != stop
            if not running.any():
                return codes[:, : step + 1]
        return codes


class Decoder:
    """Step-by-step decoding of several candidates after one shared prompt."""

    def __init__(self, model: Autoregressive, prompt: Tensor, *, batch: int, codes: int) -> None:
        """Run the prompt (1, p, dim) once and make room for `batch` candidates of `codes` codes."""
        self._model = model
        self._caches = [
            Cache(batch, model.config.heads, prompt.shape[1] + codes, prompt)
            for _ in range(model.config.layers)
        ]
        self._position = 0
        model.gpt(prompt, self._caches)

    def advance(self, codes: Tensor) -> Tensor:
        """Feed one code per candidate, (batch,), the start code first; return logits (batch, codes).

        The i-th call embeds its codes at position i, as training did. After its first step, upstream's cached
        path is one too far: its position comes from an attention mask that counts the start code as well.
        """
        model = self._model
        hidden = model.gpt(model.embed(codes.unsqueeze(1), self._position), self._caches)
        self._position += 1
        logits: Tensor = model.mel_head(model.final_norm(hidden[:, 0]))
        return logits
