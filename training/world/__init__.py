"""The small world, where the truth is known: 64 x 64 scenes of coloured shapes, their true utility and annotators.

The networks that are trained on it are built in `training.world.models`.
"""
