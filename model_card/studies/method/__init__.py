"""The method study: which parts of the reward model and of its training are worth having."""
