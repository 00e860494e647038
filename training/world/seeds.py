"""The seeds of all data of the small world.

Item i of a set is drawn with `numpy.random.default_rng((seed, i))`. NumPy pads seeds with zeros: (40, 2) and
(40, 2, 0) seed the same generator. Sets are therefore independent only if their seeds differ in the first number. The
seeds of initial weights are defined with the networks.
"""

from enum import IntEnum, unique


@unique
class Seed(IntEnum):
    """A seed, with a description of the data that it draws."""

    draws: str

    def __new__(cls, number: int, draws: str) -> "Seed":
        seed = int.__new__(cls, number)
        seed._value_ = number
        seed.draws = draws
        return seed

    # Fixed by the published weights. Both uses can share a seed, because one draws captions and the other votes.
    TOKENIZER_AND_VOTES = 0, "Captions for training the CLIP tokenizer; annotators' votes on any set of groups."

    AUTOENCODER = 1, "Pictures for training the autoencoder."
    LATENT_SCALE = 2, "Pictures whose latents determine the autoencoder's shift and scale."
    GENERATOR = 3, "Pictures for training the generator."

    # The torch seed of a generated batch's noise is this number plus the index of the batch's first group.
    RENDERED = 10, "Rendered groups for training the latent and the pixel reward."
    GENERATED = 11, "Generated groups for training both rewards."
    TEST_SEEN = 20, "Rendered groups for testing both rewards."
    TEST_HELD_OUT = 21, "Rendered groups with held-out combinations for testing the latent reward."
    TEST_GENERATED = 22, "Generated groups for testing both rewards."
    VALIDATION = 23, "Rendered groups for validating the latent reward during training."

    TEST_GENERATOR = 24, "Captions for testing the generator; the pictures rendered for them have a third number, 1."

    BENCHMARK = 40, "Groups of the benchmark `world`; every other group has a held-out combination."
    FLAWS = 43, "Pairs of the benchmark `world_flaws`. The kind of flaw is the second number."
    ALIGNMENT_EVALUATION = 41, "Evaluation prompts of every alignment run."
    # The seed of the run is the second number. The committed alignment study used 40 instead of 42.
    ALIGNMENT_PROMPTS = 42, "Training prompts of an alignment run."

    STUDY_TRAIN = 50, "Training groups of the method study."
    STUDY_SEEN = 51, "Test groups of the method study."
    STUDY_HELD_OUT = 52, "Test groups of the method study with held-out combinations."
    ORDER_POOL = 53, "Groups to vote on in the study of orders."
    ORDER_TEST = 54, "Test groups of the study of orders."
    # The seed of the run is the second number.
    ORDER_VOTES = 55, "Votes in the study of orders."

    EXAMPLES = 2026, "Layouts of the Space's example pairs; layout 0 also draws its example groups."
