"""The seeds of all that is drawn in the small world.

Number i of a set is drawn with `numpy.random.default_rng((seed, i))`. NumPy pads seeds with zeros: (40, 2) and
(40, 2, 0) seed one and the same generator. Sets are therefore apart only if their seeds differ in the first number.
The seeds of fresh weights stand beside the networks.
"""

from enum import IntEnum, unique


@unique
class Seed(IntEnum):
    """A name, a number, and what is drawn with it."""

    draws: str

    def __new__(cls, number: int, draws: str) -> "Seed":
        seed = int.__new__(cls, number)
        seed._value_ = number
        seed.draws = draws
        return seed

    # Both are in the shipped weights, so neither can change. One draws captions, the other votes: they share nothing.
    TOKENIZER_AND_VOTES = 0, "Captions that the CLIP tokenizer is trained on; annotators' votes on any set of groups."

    AUTOENCODER = 1, "Pictures that the autoencoder is trained on."
    LATENT_SCALE = 2, "Pictures whose latents give the autoencoder's shift and scale."
    GENERATOR = 3, "Pictures that the generator is trained on."

    # The generated groups' noise has torch seeds: the number, plus that of the first group of each batch.
    RENDERED = 10, "Rendered groups that the latent and the pixel reward are trained on."
    GENERATED = 11, "Generated groups that both are trained on."
    TEST_SEEN = 20, "Rendered groups that both are tested on."
    TEST_HELD_OUT = 21, "Rendered groups with combinations that never met in training, for the latent reward's test."
    TEST_GENERATED = 22, "Generated groups that both rewards are tested on."
    VALIDATION = 23, "Rendered groups that the latent reward is validated on while it trains."

    BENCHMARK = 40, "Groups of the benchmark `world`, in every other of them combinations that never met in training."
    ALIGNMENT_EVALUATION = 41, "Prompts that every alignment run is evaluated on."
    # With a run's own seed as second number. The committed alignment study was run when this number was 40.
    ALIGNMENT_PROMPTS = 42, "Prompts that an alignment run trains on."

    STUDY_TRAIN = 50, "Groups that every reward of the study of the method's claims is trained on."
    STUDY_SEEN = 51, "Groups that they are measured on."
    STUDY_HELD_OUT = 52, "Groups with combinations that never met in training, that they are measured on."

    EXAMPLES = 2026, "Layouts of the pairs among the Space's examples; as layout 0, its groups."
