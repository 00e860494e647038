"""The variants of the study of orders. Each names an order of `training.label.order`."""

from typing import get_args

from model_card.studies.frame import Variant
from training.label.order import Uncertainty

# Colours of Okabe and Ito, which any colour vision distinguishes.
VARIANTS = {
    "random": Variant("at random", "#000000"),
    "coverage": Variant("coverage of prompts", "#E69F00"),
    "likelihood_entropy": Variant("entropy of the likelihood", "#0072B2"),
    "disagreement": Variant("disagreement of draws", "#D55E00"),
    "entropy": Variant("both", "#009E73"),
}
BASELINE = "random"
UNCERTAIN = get_args(Uncertainty)
