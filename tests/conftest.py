"""What every test shares: no network, caches of its own, and a reward model small enough to build in a moment.

Libraries are imported by the fixtures that need them: the process that only hands out the tests needs none.
"""

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# All are read when the libraries are imported, before any fixture runs.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads of tiny models spend their time waiting for one another, the more so the busier the machine is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes of a test run share no cache.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="dina-tests-")
# What is imported while tests are collected stays: the garbage collector need not look through it again and again.
gc.disable()

TINY_TRANSFORMER = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 12,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 12,
    "dual_attention_layers": [0],
    "qk_norm": "rms_norm",
}


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# The last four keep Chromium itself from making requests of its own.
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

WINGS = ("modeling_dina", "training", "model_card", "space")
PROCESSES = 2


def pytest_xdist_auto_num_workers(config):
    """Single files are run in the process that there is: more would first import the libraries again."""
    whole_folders = any(Path(argument).is_dir() for argument in config.args)
    return PROCESSES if whole_folders else 0


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    """Marks every test by the folder that it is in: `-m model_card` runs one wing."""
    for item in items:
        wing = item.path.relative_to(config.rootpath / "tests").parts[0]
        if wing in WINGS:
            item.add_marker(wing)


@pytest.fixture
def tiny_config():
    """Fields of a `DinaConfig` over a 4-block transformer of width 32; each test may change its own copy."""
    return {
        "transformer_config": dict(TINY_TRANSFORMER),
        "num_layers": 3,
        "visual_layers": [1, 3],
        "text_layers": [2],
        "num_queries": 2,
        "num_attention_heads": 4,
    }


@pytest.fixture
def tiny_model(tiny_config):
    """A reward model with random weights in evaluation mode, whose zero-initialised layers are random too."""
    import torch

    from modeling_dina import DinaConfig, DinaRewardModel

    torch.manual_seed(0)
    model = DinaRewardModel(DinaConfig(**tiny_config)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def tiny_inputs():
    """Latents and text conditioning of five samples, as keyword arguments of `DinaRewardModel.reward`."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(5, 4, 8, 6, generator=generator),
        "prompt_embeds": torch.randn(5, 7, 12, generator=generator),
        "pooled_prompt_embeds": torch.randn(5, 10, generator=generator),
    }


@pytest.fixture
def loopback_hub():
    """A Hub in memory, with faults on demand. `loopback_hub.environment(home)` is that of a process that uses it."""
    from tests.loopback_hub import LoopbackHub

    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def connected_hub(loopback_hub, tmp_path, monkeypatch):
    """The same with this very process as its client, which is quick to lose its patience."""
    import huggingface_hub
    import transformers.utils.hub

    from modeling_dina.hub import push
    from tests.loopback_hub import TOKEN

    settings = {
        "ENDPOINT": loopback_hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": loopback_hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    # Two clients are made once: the one behind the library's plain functions, and transformers' own.
    for client in (huggingface_hub.hf_api.api, transformers.utils.hub.hf_api()):
        monkeypatch.setattr(client, "endpoint", loopback_hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(push, "RETRY_DELAYS", (0.01, 0.02, 0.04))
    yield loopback_hub
    huggingface_hub.close_session()


# Of a module: while it is there, an event loop runs in the main thread, in which other tests start their own.
@pytest.fixture(scope="module")
def browser():
    """A window of a browser that keeps its cache."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        browser.close()


@pytest.fixture
def open_window(browser):
    """Opens a page in a window of a given width. Errors on the console and requests to other hosts fail the test."""
    pages, complaints = [], []

    def open_window(url: str, width: int = 1280, **options):
        """Without `options`, the windows share cache and clipboard; otherwise it has a context of its own."""
        page = browser.browser.new_page(**options) if options else browser.new_page()
        origin = "/".join(url.split("/")[:3])

        def note_request(request):
            if not request.url.startswith((origin, "data:", "blob:")):
                complaints.append(f"request of {request.url}")

        def note_message(message):
            if message.type == "error":
                complaints.append(message.text)

        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.set_default_timeout(90_000)  # for a busy machine
        page.on("request", note_request)
        page.on("console", note_message)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        return page

    yield open_window
    for page in pages:
        page.close()
    assert complaints == []
