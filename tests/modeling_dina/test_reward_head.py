"""What the head's form implies, whatever its weights."""

import pytest
import torch

from modeling_dina import DinaConfig
from modeling_dina.backbone_base_dina import Features
from modeling_dina.reward_head_dina import FilmAdapter, QueryAttention, RewardHead

WIDTH = 32


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return Features(
        visual=[torch.randn(3, 12, WIDTH, generator=generator) for _ in range(2)],
        text=[torch.randn(3, 7, WIDTH, generator=generator)],
        conditioning=torch.randn(3, WIDTH, generator=generator),
    )


def build_head(tiny_config, **changes):
    torch.manual_seed(0)
    return RewardHead(DinaConfig(**{**tiny_config, **changes}), token_width=WIDTH).eval()


def test_a_fresh_film_adapter_only_projects(features):
    adapter = FilmAdapter(WIDTH, WIDTH, WIDTH, project_in=False)
    tokens = features.visual[0]
    torch.testing.assert_close(adapter(tokens, features.conditioning), adapter.proj(tokens))


def test_film_is_scale_and_shift_by_the_conditioning(features):
    adapter = FilmAdapter(WIDTH, WIDTH, WIDTH, project_in=False)
    torch.nn.init.normal_(adapter.cond_mlp[2].weight)
    torch.nn.init.normal_(adapter.layer_embed)
    tokens, conditioning = features.visual[0], features.conditioning
    gamma, beta = adapter.cond_mlp(conditioning)[:, None].split(WIDTH, dim=-1)
    expected = adapter.proj(tokens + gamma * tokens + beta + adapter.layer_embed)
    torch.testing.assert_close(adapter(tokens, conditioning), expected)


@pytest.mark.parametrize(
    ("token_width", "project_in", "projects"), [(32, False, False), (32, True, True), (16, False, True)]
)
def test_projection_where_widths_differ_or_it_is_asked_for(token_width, project_in, projects):
    adapter = FilmAdapter(token_width, 32, 32, project_in)
    assert isinstance(adapter.proj_in, torch.nn.Linear) == projects


def test_attention_to_one_token_is_its_value(features):
    attention = QueryAttention(WIDTH, num_heads=4, dropout=0.0, with_text=False)
    queries, token = features.visual[0][:, :2], features.visual[1][:, :1]
    value = attention.to_out(attention.to_v_vis(attention.norm_v(token)))
    torch.testing.assert_close(attention(queries, token), queries + value)


def test_a_closed_gate_shuts_the_text_out(features):
    attention = QueryAttention(WIDTH, num_heads=4, dropout=0.0, with_text=True)
    queries, visual, text = features.visual[0][:, :2], features.visual[1], features.text[0]
    assert not torch.allclose(attention(queries, visual, text), attention(queries, visual, 2 - text))
    torch.nn.init.constant_(attention.gate_text[2].bias, -1e4)
    torch.testing.assert_close(attention(queries, visual, text), attention(queries, visual, 2 - text))


def test_the_order_of_tokens_does_not_matter(tiny_config, features):
    head = build_head(tiny_config)
    order = torch.randperm(12)
    shuffled = features._replace(visual=[tokens[:, order] for tokens in features.visual])
    torch.testing.assert_close(head([shuffled]), head([features]))


def test_a_level_read_twice_counts_once(tiny_config, features):
    """Attention to every token twice is attention to it once, so an ensemble of equal levels changes nothing."""
    head = build_head(tiny_config)
    torch.testing.assert_close(head([features, features]), head([features]))


def test_levels_keep_their_own_conditioning(tiny_config, features):
    head = build_head(tiny_config)
    torch.nn.init.normal_(head.layer_adapters_visual[0].cond_mlp[2].weight)
    other = features._replace(conditioning=features.conditioning + 1)
    together = head([features, other])
    assert not torch.allclose(together, head([features, features]))
    torch.testing.assert_close(together, head([other, features]))


def test_logistic_squashes_the_raw_reward(tiny_config, features):
    raw = build_head(tiny_config)([features])
    squashed = build_head(tiny_config, logistic=True)([features])
    torch.testing.assert_close(squashed, 1 / (1 + torch.exp(-raw)))


def test_the_head_reads_half_precision_in_its_own(tiny_config, features):
    head = build_head(tiny_config)
    half = Features(*([t.bfloat16() for t in part] for part in features[:2]), features.conditioning.bfloat16())
    exact = head([Features(*([t.float() for t in part] for part in half[:2]), half.conditioning.float())])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rewards = head([half])
    torch.testing.assert_close(rewards, exact, rtol=0, atol=0)
