"""Bodies of `POST /v1/score`: valid, broken in a known way, and damaged at random. They are of protocol
version 1, unless a function says otherwise."""

import json
import pickle
import random
from collections.abc import Callable

import torch
from safetensors.torch import save

Tensors = dict[str, torch.Tensor]


def good_tensors(seed: int, samples: int = 1) -> Tensors:
    """A valid request for the embedded model: random latents and embeddings, noise levels and seeds."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(samples, 16, 8, 8, generator=generator),
        "prompt_embeds": torch.randn(samples, 28, 128, generator=generator),
        "pooled_prompt_embeds": torch.randn(samples, 128, generator=generator),
        "u": torch.rand(samples, generator=generator),
        "seeds": torch.randint(2**31, (samples,), generator=generator),
    }


def ensemble_tensors(seed: int, samples: int = 1) -> Tensors:
    """A valid request of protocol version 2 for the embedded model, with two noise levels and three draws."""
    tensors = good_tensors(seed, samples)
    del tensors["u"]
    return {**tensors, "sigmas": torch.tensor([0.2, 0.6]), "num_draws": torch.tensor(3)}


def break_body(generator: random.Random) -> tuple[str, bytes]:
    """The name of a fault and a body with that fault, which a server must refuse."""
    faults = BREAKS | MISFITS
    name = generator.choice(list(faults))
    return name, faults[name](generator, good_tensors(generator.randrange(1000), generator.randint(1, 3)))


def damage_body(generator: random.Random) -> tuple[str, bytes]:
    """The name of a kind of damage and a body damaged in this way. A server may refuse it, or score it if it is still
    valid."""
    return _damage(generator, good_tensors)


def damage_ensemble_body(generator: random.Random) -> tuple[str, bytes]:
    """The same, of protocol version 2."""
    return _damage(generator, ensemble_tensors)


def _damage(generator: random.Random, make: Callable[[int, int], Tensors]) -> tuple[str, bytes]:
    name = generator.choice(list(DAMAGES))
    body = save(make(generator.randrange(1000), generator.randint(1, 3)))
    return name, DAMAGES[name](generator, body)


def _with(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[random.Random, Tensors], bytes]:
    def change(generator: random.Random, tensors: Tensors) -> bytes:
        return save({**tensors, **{name: function(tensors[name]).contiguous() for name, function in changes.items()}})

    return change


def _filled(value: float, place: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    def fill(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[place] = value
        return tensor

    return fill


def _edit_header(edit: Callable[[random.Random, dict], None]) -> Callable[[random.Random, Tensors], bytes]:
    """Changes the header and leaves the data as they were."""

    def change(generator: random.Random, tensors: Tensors) -> bytes:
        body = save(tensors)
        end = 8 + int.from_bytes(body[:8], "little")
        header = json.loads(body[8:end])
        edit(generator, header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body[end:]

    return change


def _claim(generator: random.Random, header: dict) -> None:
    entry = header[generator.choice(list(header))]
    entry["shape"][generator.randrange(len(entry["shape"]))] = generator.choice([2**31, 2**62, 2**64 - 1, 10**30])


def _shift(generator: random.Random, header: dict) -> None:
    entry = header[generator.choice(list(header))]
    entry["data_offsets"][generator.randrange(2)] += generator.choice([-8, 8, 2**40])


def _mistype(generator: random.Random, header: dict) -> None:
    generator.choice(list(header.values()))["dtype"] = generator.choice(["F64", "I8", "F4", "C64", "nothing", 7, None])


# These violate the protocol, whatever the model.
BREAKS: dict[str, Callable[[random.Random, Tensors], bytes]] = {
    "empty": lambda generator, tensors: b"",
    "noise": lambda generator, tensors: generator.randbytes(generator.randint(1, 5000)),
    "pickle": lambda generator, tensors: pickle.dumps(tensors),
    "JSON": lambda generator, tensors: json.dumps({"latents": [1.0]}).encode(),
    "cut off": lambda generator, tensors: save(tensors)[: -generator.randint(1, 20_000)],
    "overlong": lambda generator, tensors: save(tensors) + generator.randbytes(generator.randint(1, 5000)),
    "header length lies": lambda generator, tensors: generator.randbytes(8) + save(tensors)[8:],
    "shape claims more": _edit_header(_claim),
    "offsets lie": _edit_header(_shift),
    "dtype lies": _edit_header(_mistype),
    "tensor missing": lambda generator, tensors: save(dict(list(tensors.items())[: generator.randint(1, 3)])),
    "tensor too many": lambda generator, tensors: save({**tensors, "extra": torch.zeros(1)}),
    "many tensors": lambda generator, tensors: save({**tensors, **{f"{i}": torch.zeros(0) for i in range(2000)}}),
    "latents not a number": _with(latents=_filled(float("nan"))),
    "embeddings infinite": _with(prompt_embeds=_filled(float("inf"), 5)),
    "level not a number": _with(u=_filled(float("nan"))),
    "level too high": _with(u=_filled(1.01)),
    "level negative": _with(u=_filled(-1e-3)),
    "seed negative": _with(seeds=_filled(-1)),
    "latents of integers": _with(latents=lambda tensor: tensor.to(torch.int32)),
    "latents in double": _with(latents=lambda tensor: tensor.to(torch.float64)),
    "levels in half": _with(u=lambda tensor: tensor.to(torch.float16)),
    "seeds of 32 bits": _with(seeds=lambda tensor: tensor.to(torch.int32)),
    "no batch dimension": _with(latents=lambda tensor: tensor[0]),
    "one level for all": _with(u=lambda tensor: tensor[0]),
    "a level too many": _with(u=lambda tensor: torch.cat([tensor, tensor[:1]])),
    "no samples": lambda generator, tensors: save({name: tensor[:0] for name, tensor in tensors.items()}),
    "no tokens": _with(prompt_embeds=lambda tensor: tensor[:, :0]),
    "too many tokens": _with(prompt_embeds=lambda tensor: tensor.repeat(1, 40, 1)),
}

# These follow the protocol but do not fit the embedded model.
MISFITS: dict[str, Callable[[random.Random, Tensors], bytes]] = {
    "channels missing": _with(latents=lambda tensor: tensor[:, :4]),
    "side of odd length": _with(latents=lambda tensor: tensor[..., :7]),
    "side too long": _with(latents=lambda tensor: tensor.repeat(1, 1, 1, 10)),
    "width of another model": _with(prompt_embeds=lambda tensor: tensor[..., :64]),
}


def _flip_bits(generator: random.Random, body: bytes) -> bytes:
    damaged = bytearray(body)
    for _ in range(generator.randint(1, 8)):
        damaged[generator.randrange(len(body))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def _flip_header_bits(generator: random.Random, body: bytes) -> bytes:
    end = 8 + int.from_bytes(body[:8], "little")
    return _flip_bits(generator, body[:end]) + body[end:]


def _copy_within(generator: random.Random, body: bytes) -> bytes:
    source, target = generator.randrange(len(body)), generator.randrange(len(body))
    piece = body[source : source + generator.randint(1, 200)]
    return body[:target] + piece + body[target + len(piece) :]


DAMAGES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "bits flipped anywhere": _flip_bits,
    "bits flipped in the header": _flip_header_bits,
    "a piece copied over another": _copy_within,
}
