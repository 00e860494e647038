"""Studies in the small world, where the truth is known: variants that differ in one thing each, measured alike."""
