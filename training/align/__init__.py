"""Preference optimisation of a diffusion model with a reward on its latents."""
