"""Where the models run: on a GPU where there is one, borrowed for each call on a ZeroGPU Space."""

try:
    import spaces
except ImportError:  # anywhere but on a ZeroGPU Space

    def on_accelerator(function):
        """The function as it is: its device is there all the time."""
        return function

else:
    on_accelerator = spaces.GPU

__all__ = ["on_accelerator"]
