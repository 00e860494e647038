"""The small world, where the truth is known: 64 x 64 scenes of coloured shapes, their true utility and annotators.

Import order, each part importing only those to its left:
training.world <- training.preference_data, training.reward, training.align, ... <- training.world.models,
where the networks of the small world are built.
"""
