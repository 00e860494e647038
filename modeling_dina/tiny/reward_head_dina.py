"""The reward head (arXiv 2602.11146): timestep-conditioned adapters on the tokens of selected layers, and learnt
queries that attend to these tokens and are projected to one reward."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils.generic import maybe_autocast


class FilmAdapter(nn.Module):
    """Modulates the tokens of one layer by the time embedding and projects them to a quarter of the width."""

    def __init__(self, token_width: int, conditioning_width: int, width: int, project_in: bool):
        super().__init__()
        needs_projection = project_in or token_width != width
        self.proj_in = nn.Linear(token_width, width) if needs_projection else nn.Identity()
        self.layer_embed = nn.Parameter(torch.zeros(1, 1, width))
        modulation = nn.Linear(2 * width, 2 * width)
        # Initially the modulation is the identity.
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)
        self.cond_mlp = nn.Sequential(nn.Linear(conditioning_width, 2 * width), nn.SiLU(), modulation)
        self.proj = nn.Linear(width, width // 4)

    def forward(self, tokens: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        """tokens [B, S, token width], conditioning [B, conditioning width] -> [B, S, width / 4]."""
        gamma, beta = self.cond_mlp(conditioning).unsqueeze(1).chunk(2, dim=-1)
        return self.proj(self.proj_in(tokens) * (1 + gamma) + beta + self.layer_embed)


class QueryAttention(nn.Module):
    """Cross-attention from queries to visual tokens, with pre-norm and a residual connection. With `with_text`, they
    also attend to text tokens through separate keys and values; every value is then scaled by a token-wise gate, and
    the two results are added."""

    def __init__(self, width: int, num_heads: int, dropout: float, with_text: bool):
        super().__init__()
        self.num_heads = num_heads
        self.norm_q = nn.RMSNorm(width)
        self.norm_v = nn.RMSNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_k_vis = nn.Linear(width, width)
        self.to_v_vis = nn.Linear(width, width)
        if with_text:
            self.norm_t = nn.RMSNorm(width)
            self.to_k_text = nn.Linear(width, width)
            self.to_v_text = nn.Linear(width, width)
            self.gate_vis = _gate(width)
            self.gate_text = _gate(width)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def forward(
        self,
        queries: torch.Tensor,
        visual: torch.Tensor,
        text: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """queries [B, Q, width], visual [B, V, width], text [B, T, width], text_mask bool [B, T], True for tokens to
        attend to -> [B, Q, width]."""
        q = self.to_q(self.norm_q(queries))
        visual = self.norm_v(visual)
        values = self.to_v_vis(visual)
        if text is None:
            return queries + self.to_out(self._attend(q, self.to_k_vis(visual), values))
        text = self.norm_t(text)
        gated = values * self.gate_vis(visual).sigmoid()
        text_gated = self.to_v_text(text) * self.gate_text(text).sigmoid()
        attended = self._attend(q, self.to_k_vis(visual), gated)
        attended = attended + self._attend(q, self.to_k_text(text), text_gated, text_mask)
        return queries + self.to_out(attended)

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        if mask is not None:
            mask = mask[:, None, None, :]
        q, k, v = (tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for tokens in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class RewardHead(nn.Module):
    """Maps the features of selected layers to one reward. Module names are those of the published weights."""

    def __init__(
        self,
        config,
        token_width: int,
        conditioning_width: int | None = None,
        visual_widths: Sequence[int] | None = None,
        text_token_width: int | None = None,
    ):
        """Arguments are as in `Dimensions`; `conditioning_width` None means that it equals `token_width`."""
        super().__init__()
        width = config.head_width or token_width
        conditioning_width = conditioning_width or token_width
        dropout = config.head_dropout

        def adapters(widths):
            return nn.ModuleList(FilmAdapter(each, conditioning_width, width, config.project_in) for each in widths)

        self.one_grid = visual_widths is None
        self.layer_adapters_visual = adapters(
            token_width if visual_widths is None else visual_widths[layer] for layer in config.visual_layers
        )
        self.layer_adapters_text = adapters(text_token_width or token_width for _ in config.text_layers)
        self.agg_visual = nn.Linear(len(config.visual_layers) * (width // 4), width)
        self.agg_text = nn.Linear(len(config.text_layers) * (width // 4), width)
        self.query_tokens = nn.Parameter(0.02 * torch.randn(1, config.num_queries, width))
        self.attn1 = QueryAttention(width, config.num_attention_heads, dropout, with_text=True)
        self.attn2 = QueryAttention(width, config.num_attention_heads, dropout, with_text=False)
        self.norm_ff = nn.RMSNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, 1)
        self.logistic = config.logistic

    def forward(self, levels: list) -> torch.Tensor:
        """Compute one reward per sample, [B], from the backbone's features at one or several noise levels.

        The tokens of several levels, each conditioned on its own timestep, are concatenated and processed in one pass.
        The reward is always computed in the head's own precision, also under autocast.
        """
        # The weights of an offloaded head are on the meta device until its layers run.
        with maybe_autocast(device_type=levels[0].conditioning.device.type, enabled=False):
            visual, text = zip(*(self._tokens(features) for features in levels), strict=True)
            # All levels have the same text, so that either all have a mask or none has.
            masks = [features.text_mask for features in levels if features.text_mask is not None]
            mask = torch.cat(masks, dim=1) if masks else None
            rewards = self._read(torch.cat(visual, dim=1), torch.cat(text, dim=1), mask)
        return rewards.sigmoid() if self.logistic else rewards

    def _tokens(self, features) -> tuple[torch.Tensor, torch.Tensor]:
        """Map backbone features of one noise level to visual tokens [B, V, width] and text tokens [B, T, width]."""
        dtype = self.query_tokens.dtype  # this parameter is not affected by quantising or casting layers
        conditioning = features.conditioning.to(dtype)

        def adapt(adapters, layers):
            pairs = zip(adapters, layers, strict=True)
            return [adapter(tokens.to(dtype), conditioning) for adapter, tokens in pairs]

        adapted = adapt(self.layer_adapters_visual, features.visual)
        text = self.agg_text(torch.cat(adapt(self.layer_adapters_text, features.text), dim=-1))
        if self.one_grid:
            return self.agg_visual(torch.cat(adapted, dim=-1)), text
        return torch.cat([self.agg_visual(_alone(adapted, layer)) for layer in range(len(adapted))], dim=1), text

    def _read(self, visual: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor | None) -> torch.Tensor:
        """Map visual tokens [B, V, width] and text tokens [B, T, width] to rewards [B]."""
        queries = self.query_tokens.expand(visual.shape[0], -1, -1)
        queries = self.attn1(queries, visual, text, text_mask)
        queries = self.attn2(queries, visual)
        queries = queries + self.ff(self.norm_ff(queries))
        return self.head(queries).mean(dim=(1, 2))


def _alone(adapted: Sequence[torch.Tensor], layer: int) -> torch.Tensor:
    """The tokens [B, V, width / 4] of one layer with zeros for the other layers, [B, V, layers * width / 4].

    Tokens of unlike grids have no counterparts in other layers, so that each layer has tokens of its own.
    """
    width = adapted[layer].shape[-1]
    return F.pad(adapted[layer], (layer * width, (len(adapted) - 1 - layer) * width))


def _gate(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))


__all__ = ["FilmAdapter", "QueryAttention", "RewardHead"]
