"""An autoencoder that overflows in float16, as that of Stable Diffusion XL."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch

from modeling_dina.latents_dina import decode_latents, encode_images
from tests.families import tiny_vae


@pytest.fixture
def vae():
    """In float16, with features beyond its largest number. A normalisation makes them small again."""
    torch.manual_seed(0)
    vae = tiny_vae().eval().requires_grad_(False)
    for part in (vae.encoder, vae.decoder):
        part.conv_in.weight *= 1e5
    return vae.half()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    return {
        encode_images: torch.rand(2, 3, 32, 32, generator=generator),
        decode_latents: torch.randn(2, 4, 4, 4, generator=generator),
    }


@pytest.mark.parametrize("function", [encode_images, decode_latents])
def test_it_computes_in_float32(vae, inputs, function):
    weights = {name: weight.clone() for name, weight in vae.state_dict().items()}
    expected = function(deepcopy(vae).float(), inputs[function])
    with torch.inference_mode():
        found = function(vae, inputs[function].half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=2e-3)
    assert vae.dtype == torch.float16
    assert all(torch.equal(weight, weights[name]) for name, weight in vae.state_dict().items())
    assert not any(weight.is_inference() for weight in vae.parameters())
    vae.register_to_config(force_upcast=False)
    assert function(vae, inputs[function].half()).isnan().any()


def test_several_threads_may_share_it(vae, inputs):
    expected = {function: function(vae, values) for function, values in inputs.items()}
    with ThreadPoolExecutor(4) as threads:
        tasks = [(function, threads.submit(function, vae, inputs[function])) for function in list(inputs) * 4]
        assert all(torch.equal(task.result(), expected[function]) for function, task in tasks)
    assert vae.dtype == torch.float16


def test_a_gradient_needs_another_dtype(vae, inputs):
    for function, values in inputs.items():
        with pytest.raises(ValueError, match="vae: expected float32 or bfloat16 for gradients, got one in float16"):
            function(vae, values.requires_grad_())
        assert vae.dtype == torch.float16
        with torch.no_grad():
            assert function(vae, values).isfinite().all()


def test_other_dtypes_are_left_alone(inputs):
    latents = inputs[decode_latents].requires_grad_()
    pixels = decode_latents(tiny_vae().bfloat16(), latents)
    assert pixels.dtype == torch.bfloat16
    pixels.sum().backward()
    assert latents.grad.any()
