"""The demonstration: a Gradio Space of the reward model."""
