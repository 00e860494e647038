"""The Space: `python app.py`. DINA_MODEL names another model than the embedded one, a folder or a Hub id."""

import os

from demo.accelerator import on_accelerator  # noqa: F401  first, since ZeroGPU wants to be imported before torch
from demo.serving import EMBEDDED_MODEL, serve

if __name__ == "__main__":
    serve(os.environ.get("DINA_MODEL", EMBEDDED_MODEL))
