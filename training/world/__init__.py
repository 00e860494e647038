"""The small world, a synthetic data set with known ground truth: 64 x 64 scenes of coloured shapes, their true
utility, and simulated annotators.

Each package imports only packages to its left:
training.world <- training.preference_data, training.reward, training.align, ... <- training.world.models,
which builds the networks of the small world.
"""
