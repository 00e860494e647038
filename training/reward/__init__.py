"""Training of reward models on preference pairs of cached latents."""
