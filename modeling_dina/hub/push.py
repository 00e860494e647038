"""Pushes a folder to a model repository on the Hub: private unless asked otherwise, in one commit, and patient with
faults that pass. Token and endpoint are huggingface_hub's own: `HF_TOKEN` or `hf auth login`, and `HF_ENDPOINT`."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_session,
    get_token,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last-checkpoint"
# Files and folders of these names are never published: hidden ones, among them what `atomic_path` has not finished;
# journals of interrupted runs, `*.partial`; and by-products.
LITTER = (".*", "__pycache__", "*.pyc", "*.partial", "*.tmp", "*.lock")
# Nor, beside a model, what only a training run has a use for: its state, as this package's trainer, transformers,
# Accelerate, FSDP and DeepSpeed name it, its earlier checkpoints, and its logs.
TRAINING_STATE = (
    *("trainable.safetensors", "ema.safetensors", "sampler.*", "trainer_state.json", "training_args.bin"),
    *("optimizer*", "scheduler.pt", "scheduler.bin", "scaler.pt", "rng_state*", "random_states_*"),
    *("global_step*", "pytorch_model_fsdp_*", "checkpoint-*", LAST_CHECKPOINT, "runs", "wandb", "trackio"),
)

# huggingface_hub itself tries again, for about as long, where it asks how files are to be sent and sends them; not
# where it looks up, creates, commits and tags. Those calls go through `_patiently`.
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds
PATIENCE = 120.0  # seconds after which a call is not tried again, however few the tries
# 412: another commit came first. It is no conflict, for ours replaces the files it names and no others.
TRANSIENT = (408, 412, 429, 500, 502, 503, 504)
TIMEOUT = httpx.Timeout(60.0, connect=10.0)  # seconds of silence


class PushError(OSError):
    """A push that did not succeed. The message names the repository, what went wrong and, where known, the remedy."""


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    tag: str | None = None,
    message: str = "Upload model",
    training_state: str | Path | None = None,
) -> CommitInfo:
    """Push `published_files(folder)` to a model repository, in one commit. The folder is only read.

    Files of the repository that the folder does not have stay.

    Args:
        folder: what to push.
        repo_id: "owner/name"; created if there is none.
        private: how to create it. A repository that exists keeps its visibility, with a warning if it is the other.
        tag: a new tag for the commit.
        message: of the commit.
        training_state: a folder that becomes `last-checkpoint/` in the same commit, in place of what was there.

    Returns:
        The commit: `oid` is its hash, `commit_url` its page. If nothing has changed, the one that was there.

    Raises:
        ValueError: a malformed argument, a folder with nothing to push, a tag that exists. Nothing was uploaded.
        PushError: the Hub refused, or could not be reached for as long as was tried.
    """
    check_repo_id(repo_id)
    if tag is not None:
        _check_tag(tag)
    files = {path: Path(folder, path) for path in published_files(folder)}
    if not files:
        raise ValueError(f"folder: expected files to push, got {folder}")
    if training_state is not None:
        paths = published_files(training_state, but=LITTER)
        files |= {f"{LAST_CHECKPOINT}/{path}": Path(training_state, path) for path in paths}

    # Imported here, because it imports torch, which a push from the command line else does without.
    from modeling_dina.conditioning_dina import warn_of_local_sources

    warn_of_local_sources(folder)

    api = _hub()
    with _faults_of(repo_id):
        _ensure_repository(api, repo_id, private)
        taken = _refs(api, repo_id) if tag is not None else {}
    if tag in taken:
        raise ValueError(f"tag: expected a new one, got {tag!r}, which {repo_id} has")

    with _faults_of(repo_id):
        operations: list = [CommitOperationAdd(path, str(source)) for path, source in files.items()]
        # Not upload_folder: it may make several commits, and without hf_xet asks for its commit only once.
        api.preupload_lfs_files(repo_id, operations, free_memory=False)
        if training_state is not None:
            there = _patiently(api.list_repo_files, repo_id)
            stale = [path for path in there if path.startswith(f"{LAST_CHECKPOINT}/") and path not in files]
            operations += [CommitOperationDelete(path, is_folder=False) for path in stale]
        commit = _patiently(api.create_commit, repo_id, operations, commit_message=message)
    if tag is not None:
        try:
            tag_commit(repo_id, tag, commit.oid)
        except PushError as error:
            raise PushError(f"{commit.commit_url} is pushed, but not tagged {tag}: {error}") from error
    return commit


def tag_commit(repo_id: str, tag: str, commit: str) -> None:
    """Tag a commit that has been pushed.

    Raises:
        PushError: the Hub refused, as it does if the tag exists, or could not be reached for as long as was tried.
    """
    api = _hub()
    with _faults_of(repo_id):
        try:
            _patiently(api.create_tag, repo_id, tag=tag, revision=commit)
        except HfHubHTTPError as error:
            # It may have been made, and only the answer lost, the first time it was asked for.
            if error.response.status_code != 409 or _refs(api, repo_id).get(tag) != commit:
                raise


def published_files(folder: str | Path, *, but: tuple[str, ...] = LITTER + TRAINING_STATE) -> list[str]:
    """Paths, relative to `folder` and sorted, of the files in it whose own name, and the names of the folders they
    are in, match none of the patterns `but`. Links are followed.

    Raises:
        ValueError: `folder` is none.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"folder: expected a folder, got {folder}")

    def published(name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in but)

    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        # A link to a folder that encloses it would be followed round and round.
        folders[:] = [name for name in folders if published(name) and not _encloses(here / name, here)]
        found += [here / name for name in names if published(name)]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def _encloses(folder: Path, place: Path) -> bool:
    return place.resolve().is_relative_to(folder.resolve())


def check_model_folder(folder: str | Path) -> None:
    """Raise a ValueError unless `folder` is a model: `config.json` with safetensors beside it."""
    names = published_files(folder)
    if "config.json" not in names or not any(fnmatchcase(name, "*.safetensors") and "/" not in name for name in names):
        raise ValueError(f"folder: expected config.json and *.safetensors in it, got {folder} without")


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError unless `repo_id` is well-formed."""
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"repo_id: expected owner/name, got {repo_id!r}")


def _check_tag(tag: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", tag) or ".." in tag or tag.endswith((".", ".lock")):
        raise ValueError(f"tag: expected letters, digits, '.', '_' and '-', got {tag!r}")


def _hub() -> HfApi:
    _limit_waiting()
    return HfApi()


@cache
def _limit_waiting() -> None:
    """huggingface_hub waits for an answer for ever. From the first push on, its requests in this process do not; a
    client with a limit, which somebody else has set up, stays."""
    session = get_session()
    if session.timeout.read is None:
        hooks = session.event_hooks
        set_client_factory(lambda: httpx.Client(event_hooks=hooks, follow_redirects=True, timeout=TIMEOUT))


def _ensure_repository(api: HfApi, repo_id: str, private: bool) -> None:
    try:
        found = _patiently(api.repo_info, repo_id)
    except RepositoryNotFoundError:
        _patiently(api.create_repo, repo_id, private=private, exist_ok=True)
        return
    if bool(found.private) is not private:
        logger.warning("%s exists and is %s: it stays so", repo_id, "private" if found.private else "public")


def _refs(api: HfApi, repo_id: str) -> dict[str, str]:
    """The commit of every branch and tag."""
    refs = _patiently(api.list_repo_refs, repo_id)
    return {ref.name: ref.target_commit for ref in [*refs.branches, *refs.tags]}


def _patiently(call: Callable, *args, **kwargs) -> Any:
    """`call(*args, **kwargs)`, again and again if what goes wrong may pass, within `WAITS` and `PATIENCE`."""
    started = time.monotonic()
    for wait in WAITS:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if not _may_pass(error) or time.monotonic() - started > PATIENCE:
                raise
            logger.warning("%s: %s; again in %g s", call.__name__, _reason(error), wait)
        time.sleep(wait)
    return call(*args, **kwargs)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    # A gateway's page in place of the Hub's JSON is as good as a 502.
    return isinstance(
        error, httpx.TimeoutException | httpx.NetworkError | httpx.RemoteProtocolError | json.JSONDecodeError
    )


@contextmanager
def _faults_of(repo_id: str) -> Iterator[None]:
    """Turns whatever went wrong, in huggingface_hub or below it, into a `PushError`."""
    try:
        yield
    except Exception as error:
        raise PushError(f"{repo_id}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What went wrong, on one line, and what to do about it where that is known."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # from a thread that sends a large file
        return f"{error} {_reason(error.__cause__)}"
    if isinstance(error, HfHubHTTPError):
        response = error.response
        if response.status_code in (401, 403):
            fault = "refused the token" if get_token() else "wants a token"
            remedy = "set HF_TOKEN to one with write access, or run `hf auth login`"
            return f"the Hub {fault} ({response.status_code}): {remedy}"
        # Without its query, for that of a large file's URL is a signature.
        asked = f"{response.request.method} {response.url.copy_with(query=None)}"
        answer = f"{response.status_code} {response.reason_phrase}"
        return f"{asked}: {answer}" + (f": {error.server_message}" if error.server_message else "")
    if isinstance(error, httpx.TransportError):
        return f"cannot reach {HfApi().endpoint}: {str(error) or type(error).__name__}"
    if isinstance(error, json.JSONDecodeError):
        return f"{HfApi().endpoint} did not answer as the Hub does"
    return " ".join(str(error).split()) or type(error).__name__
