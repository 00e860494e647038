"""Pushes a folder to a model or data set repository on the Hub, private by default, in one commit, with retries on
transient errors. huggingface_hub finds the token (`HF_TOKEN` or `hf auth login`) and the endpoint (`HF_ENDPOINT`)."""

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
from typing import Any, Literal

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

RepoType = Literal["model", "dataset"]
LAST_CHECKPOINT = "last-checkpoint"
# Files and folders with these names are never published: hidden ones, including unfinished files of `atomic_path`;
# journals of interrupted runs, `*.partial`; and temporary files.
IGNORED_FILES = (".*", "__pycache__", "*.pyc", "*.partial", "*.tmp", "*.lock")
# A model is published without files that only training needs: the training state of this package's trainer,
# transformers, Accelerate, FSDP and DeepSpeed, earlier checkpoints, and logs.
TRAINING_STATE = (
    *("trainable.safetensors", "ema.safetensors", "sampler.*", "trainer_state.json", "training_args.bin"),
    *("optimizer*", "scheduler.pt", "scheduler.bin", "scaler.pt", "rng_state*", "random_states_*"),
    *("global_step*", "pytorch_model_fsdp_*", "checkpoint-*", LAST_CHECKPOINT, "runs", "wandb", "trackio"),
)

# huggingface_hub itself retries the upload of files for about as long, but not look-ups and the creation of
# repositories, commits and tags. `_retry` handles these calls.
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds
RETRY_TIMEOUT = 120.0  # seconds after which a call is not retried
# 412: another commit came first. This is not a conflict, because ours replaces only the files that it contains.
TRANSIENT = (408, 412, 429, 500, 502, 503, 504)
TIMEOUT = httpx.Timeout(60.0, connect=10.0)  # seconds without data


class PushError(OSError):
    """A push failed. The message gives the repository, the reason and, if known, the remedy."""


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    tag: str | None = None,
    message: str = "Upload model",
    training_state: str | Path | None = None,
    repo_type: RepoType = "model",
) -> CommitInfo:
    """Push `published_files(folder)` to a repository, in one commit. The folder is not changed.

    Other files of the repository are not changed.

    Args:
        folder: folder to push.
        repo_id: "owner/name"; created if it does not exist.
        private: whether to create a private repository. An existing one keeps its visibility, with a warning if it
            differs.
        tag: new tag for the commit.
        message: commit message.
        training_state: folder that replaces `last-checkpoint/` in the same commit.
        repo_type: kind of the repository.

    Returns:
        The commit, with its hash `oid` and its page `commit_url`; the previous commit if nothing has changed.

    Raises:
        ValueError: an argument is malformed, there are no files to push, or the tag exists. Nothing was uploaded.
        PushError: the Hub refused the push, or could not be reached despite retries.
    """
    check_repo_id(repo_id)
    if tag is not None:
        _check_tag(tag)
    files = {path: Path(folder, path) for path in published_files(folder)}
    if not files:
        raise ValueError(f"folder: expected files to push, got {folder}")
    if training_state is not None:
        paths = published_files(training_state, but=IGNORED_FILES)
        files |= {f"{LAST_CHECKPOINT}/{path}": Path(training_state, path) for path in paths}

    # Imported here because it imports torch, which a push from the command line does not need otherwise.
    from modeling_dina.conditioning_dina import warn_of_local_sources

    warn_of_local_sources(folder)

    api = _hub()
    with _as_push_error(repo_id):
        _ensure_repository(api, repo_id, private, repo_type)
        taken = _refs(api, repo_id, repo_type) if tag is not None else {}
    if tag in taken:
        raise ValueError(f"tag: expected a new one, got {tag!r}, which {repo_id} has")

    with _as_push_error(repo_id):
        operations: list = [CommitOperationAdd(path, str(source)) for path, source in files.items()]
        # Not upload_folder: it may make several commits, and without hf_xet it does not retry its commit.
        api.preupload_lfs_files(repo_id, operations, repo_type=repo_type, free_memory=False)
        if training_state is not None:
            there = _retry(api.list_repo_files, repo_id, repo_type=repo_type)
            stale = [path for path in there if path.startswith(f"{LAST_CHECKPOINT}/") and path not in files]
            operations += [CommitOperationDelete(path, is_folder=False) for path in stale]
        commit = _retry(api.create_commit, repo_id, operations, commit_message=message, repo_type=repo_type)
    if tag is not None:
        try:
            tag_commit(repo_id, tag, commit.oid, repo_type)
        except PushError as error:
            raise PushError(f"{commit.commit_url} is pushed, but not tagged {tag}: {error}") from error
    return commit


def tag_commit(repo_id: str, tag: str, commit: str, repo_type: RepoType = "model") -> None:
    """Tag a commit that has been pushed.

    Raises:
        PushError: the Hub refused the tag, for example because it exists, or could not be reached despite retries.
    """
    api = _hub()
    with _as_push_error(repo_id):
        try:
            _retry(api.create_tag, repo_id, tag=tag, revision=commit, repo_type=repo_type)
        except HfHubHTTPError as error:
            # An earlier attempt may have created the tag although its response was lost.
            if error.response.status_code != 409 or _refs(api, repo_id, repo_type).get(tag) != commit:
                raise


def published_files(folder: str | Path, *, but: tuple[str, ...] = IGNORED_FILES + TRAINING_STATE) -> list[str]:
    """Sorted relative paths of the files in `folder` for which neither the file name nor the name of a parent folder
    matches a pattern in `but`. Links are followed.

    Raises:
        ValueError: `folder` is not a folder.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"folder: expected a folder, got {folder}")

    def published(name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in but)

    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        # A link to an enclosing folder would be followed without end.
        above = {here.resolve(), *here.resolve().parents}
        folders[:] = [name for name in folders if published(name) and (here / name).resolve() not in above]
        found += [here / name for name in names if published(name)]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def check_model_folder(folder: str | Path) -> None:
    """Raise a ValueError unless `folder` contains `config.json` and a model's weights: safetensors files, or those of
    the published layout."""
    names = published_files(folder)
    official = ("checkpoint/rm_head.pt", "checkpoint/full_model.pt")
    has_weights = any(name in official or (name.endswith(".safetensors") and "/" not in name) for name in names)
    if "config.json" not in names or not has_weights:
        raise ValueError(f"folder: expected config.json and *.safetensors, got {folder} without them")


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError unless `repo_id` is well-formed."""
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"repo_id: expected owner/name, got {repo_id!r}")


def _check_tag(tag: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", tag) or ".." in tag or tag.endswith((".", ".lock")):
        raise ValueError(f"tag: expected letters, digits, '.', '_' and '-', got {tag!r}")


def _hub() -> HfApi:
    _set_timeouts()
    return HfApi()


@cache
def _set_timeouts() -> None:
    """Set timeouts for all requests of huggingface_hub in this process, which by default has none. A client that
    already has a timeout is not changed."""
    session = get_session()
    if session.timeout.read is None:
        hooks = session.event_hooks
        set_client_factory(lambda: httpx.Client(event_hooks=hooks, follow_redirects=True, timeout=TIMEOUT))


def _ensure_repository(api: HfApi, repo_id: str, private: bool, repo_type: RepoType) -> None:
    try:
        found = _retry(api.repo_info, repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        _retry(api.create_repo, repo_id, private=private, exist_ok=True, repo_type=repo_type)
        return
    if bool(found.private) is not private:
        logger.warning("%s already exists and remains %s", repo_id, "private" if found.private else "public")


def _refs(api: HfApi, repo_id: str, repo_type: RepoType) -> dict[str, str]:
    """The commits of all branches and tags."""
    refs = _retry(api.list_repo_refs, repo_id, repo_type=repo_type)
    return {ref.name: ref.target_commit for ref in [*refs.branches, *refs.tags]}


def _retry(call: Callable, *args, **kwargs) -> Any:
    """Return `call(*args, **kwargs)`, retried on transient errors after `RETRY_DELAYS` and within `RETRY_TIMEOUT`."""
    started = time.monotonic()
    for wait in RETRY_DELAYS:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if not _is_transient(error) or time.monotonic() - started > RETRY_TIMEOUT:
                raise
            logger.warning("%s: %s; retrying in %g s", call.__name__, _reason(error), wait)
        time.sleep(wait)
    return call(*args, **kwargs)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    # A gateway's error page in place of the Hub's JSON is treated like status 502.
    return isinstance(
        error, httpx.TimeoutException | httpx.NetworkError | httpx.RemoteProtocolError | json.JSONDecodeError
    )


@contextmanager
def _as_push_error(repo_id: str) -> Iterator[None]:
    """Convert any exception of huggingface_hub or below it to a `PushError`."""
    try:
        yield
    except Exception as error:
        raise PushError(f"{repo_id}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The reason of an error on one line, with the remedy if it is known."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # from a thread that uploads a large file
        return f"{error} {_reason(error.__cause__)}"
    if isinstance(error, HfHubHTTPError):
        response = error.response
        if response.status_code in (401, 403):
            fault = "refused the token" if get_token() else "requires a token"
            remedy = "set HF_TOKEN to one with write access, or run `hf auth login`"
            return f"the Hub {fault} ({response.status_code}): {remedy}"
        # Without its query, because that of a large file's URL contains a signature.
        sent = f"{response.request.method} {response.url.copy_with(query=None)}"
        answer = f"{response.status_code} {response.reason_phrase}"
        return f"{sent}: {answer}" + (f": {error.server_message}" if error.server_message else "")
    if isinstance(error, httpx.TransportError):
        return f"cannot reach {HfApi().endpoint}: {str(error) or type(error).__name__}"
    if isinstance(error, json.JSONDecodeError):
        return f"{HfApi().endpoint} sent a response that is not JSON"
    return " ".join(str(error).split()) or type(error).__name__
