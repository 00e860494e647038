"""Adapters for DiNa as the reward of other trainers, which are not dependencies. Each module explains its use."""
