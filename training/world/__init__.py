"""The small world: 64 x 64 scenes of coloured shapes whose true utility is known, and small models trained on it."""
