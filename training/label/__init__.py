"""Votes of people on pairs of pictures: collection on a local page, quality, and export for training."""
