"""A Hub for tests: as much of its HTTP API as pushing and loading need, in memory, on a port of this machine, with
faults on demand. Large files go by plain LFS: its clients need HF_HUB_DISABLE_XET=1.

    with LoopbackHub() as hub:
        hub.fail("commit", status=503, times=2)
        subprocess.run([...], env=hub.environment(home))
        hub.repos["owner/name"].files("v1")

or `python tests/loopback_hub.py PORT`, which serves until it is interrupted.
"""

import asyncio
import base64
import hashlib
import json
import os
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKEN = "hf_fake"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".png", ".webp", ".parquet")


class File(NamedTuple):
    content: bytes
    is_lfs: bool

    @property
    def oid(self) -> str:
        """As the Hub compares it: of git for a regular file, of the content for a large one."""
        blob = self.content if self.is_lfs else b"blob %d\0%s" % (len(self.content), self.content)
        return (hashlib.sha256 if self.is_lfs else hashlib.sha1)(blob).hexdigest()


@dataclass
class Commit:
    title: str
    files: dict[str, File]
    parent: str | None = None


@dataclass
class Repo:
    """A repository: its commits by hash, its one branch, and its tags."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    main: str | None = None
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a hash stands for."""
        names = {"main": self.main, **self.tags}
        return names.get(revision) or (revision if revision in self.commits else None)

    def add(self, title: str, files: dict[str, File]) -> str:
        oid = hashlib.sha1(f"{title}{len(self.commits)}{self.main}".encode()).hexdigest()
        self.commits[oid] = Commit(title, files, parent=self.main)
        self.main = oid
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Contents at a revision, by path."""
        return {path: file.content for path, file in self.commits[self.resolve(revision)].files.items()}

    def titles(self) -> list[str]:
        """Of the commits on the branch, the newest first."""
        titles, oid = [], self.main
        while oid is not None:
            titles.append(self.commits[oid].title)
            oid = self.commits[oid].parent
        return titles


@dataclass
class Fault:
    """What the next `times` requests of a kind meet. See `LoopbackHub.fail`."""

    kind: str
    times: float
    status: int | None
    code: str
    cut: bool
    lost: bool
    delay: float


class LoopbackHub:
    """The server; a context manager that runs it in a thread.

    Kinds of requests, by which faults are asked for and `requests` is kept: "create", "info", "refs", "tree",
    "validate", "preupload" (how is each file to be sent?), "lfs" (where to?), "upload", "commit", "tag", "download".

    Attributes:
        repos: repositories, by "owner/name" for models, "datasets/owner/name" and "spaces/owner/name".
        requests: the kind of every request that came, in their order.
    """

    def __init__(self, port: int = 0):
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self._blobs: dict[str, bytes] = {}
        self._faults: list[Fault] = []
        self._socket = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        api, get, post = "/api/{kind}/{owner}/{name}", ["GET"], ["POST"]
        routes = [
            Route("/api/repos/create", self._serve("create", self._create), methods=post),
            Route("/api/validate-yaml", self._serve("validate", self._validate), methods=post),
            Route(api, self._serve("info", self._info), methods=get),
            Route(api + "/revision/{revision}", self._serve("info", self._info), methods=get),
            Route(api + "/refs", self._serve("refs", self._refs), methods=get),
            Route(api + "/tree/{revision}", self._serve("tree", self._tree), methods=get),
            Route(api + "/tree/{revision}/{path:path}", self._serve("tree", self._tree), methods=get),
            Route(api + "/paths-info/{revision}", self._serve("tree", self._paths), methods=post),
            Route(api + "/preupload/{revision}", self._serve("preupload", self._preupload), methods=post),
            *(
                Route(
                    f"{kind}/{{owner}}/{{name}}.git/info/lfs/objects/batch",
                    self._serve("lfs", self._lfs),
                    methods=post,
                )
                for kind in ("/{kind}", "")
            ),
            Route("/lfs/{oid}", self._serve("upload", self._upload), methods=["PUT"]),
            Route(api + "/commit/{revision}", self._serve("commit", self._commit), methods=post),
            Route(api + "/tag/{revision}", self._serve("tag", self._tag), methods=post),
            *(
                Route(
                    f"{kind}/{{owner}}/{{name}}/resolve/{{revision}}/{{path:path}}",
                    self._serve("download", self._download),
                )
                for kind in ("/{kind}", "")
            ),
        ]
        config = uvicorn.Config(Starlette(routes=routes), log_level="critical", timeout_graceful_shutdown=0)
        self._server = uvicorn.Server(config)

    def serve(self) -> None:
        self._server.run(sockets=[self._socket])

    def __enter__(self) -> "LoopbackHub":
        self._thread = Thread(target=self.serve, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on connections are refused."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._socket.close()

    def environment(self, home: Path) -> dict[str, str]:
        """Of a process that takes this for the Hub, and keeps what it downloads in `home`."""
        return os.environ | {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def fail(
        self,
        kind: str,
        *,
        times: float = 1,
        status: int | None = None,
        code: str = "",
        cut: bool = False,
        lost: bool = False,
        delay: float = 0,
    ) -> None:
        """Let the next `times` requests of a kind, or of "any", go wrong.

        Args:
            status: the error they are answered with.
            code: the Hub's own name of that error, such as "GatedRepo".
            cut: the connection closes after the first bytes of the request.
            lost: the request is obeyed, and then the connection closes.
            delay: seconds before any of these; or before the answer, if it is all that is given.
        """
        self._faults.append(Fault(kind, times, status, code, cut, lost, delay))

    def _serve(self, kind, answer):
        async def endpoint(request: Request) -> Response:
            self.requests.append(kind)
            fault = next((fault for fault in self._faults if fault.times > 0 and fault.kind in (kind, "any")), None)
            if fault is None:
                return await self._answer(request, answer)
            fault.times -= 1
            await asyncio.sleep(fault.delay)
            if fault.cut:
                await anext(request.stream())
                return _HalfResponse()
            if fault.status is not None:
                return _error(fault.status, "as it was asked to", fault.code)
            response = await self._answer(request, answer)
            return _HalfResponse() if fault.lost else response

        return endpoint

    async def _answer(self, request: Request, answer) -> Response:
        if request.headers.get("authorization", f"Bearer {TOKEN}") != f"Bearer {TOKEN}":
            return _error(401, "Invalid credentials in Authorization header")
        try:
            return await answer(request)
        except _RefusedError as refusal:
            return _error(*refusal.args)

    def _repo(self, request: Request, *, to_write: bool = False) -> Repo:
        repo = self.repos.get(_repo_name(request.path_params))
        if not _is_known(request) and (repo is None or repo.private or to_write):
            raise _RefusedError(401, "Repository not found", "RepoNotFound")
        if repo is None:
            raise _RefusedError(404, "Repository not found", "RepoNotFound")
        return repo

    def _commit_of(self, request: Request) -> tuple[str, Commit]:
        repo = self._repo(request)
        oid = repo.resolve(request.path_params.get("revision", "main"))
        if oid is None:
            raise _RefusedError(404, "Revision not found", "RevisionNotFound")
        return oid, repo.commits[oid]

    async def _create(self, request: Request) -> Response:
        if not _is_known(request):
            raise _RefusedError(401, "Invalid username or password.")
        wanted = await request.json()
        place = {"kind": f"{wanted.get('type') or 'model'}s", "owner": wanted["organization"], "name": wanted["name"]}
        if wanted.get("type") == "space" and "sdk" not in wanted:
            raise _RefusedError(400, "sdk: expected the SDK of the Space")
        repo_id = _repo_name(place)
        answer = {"url": f"{self.url}/{repo_id}", "name": repo_id}
        if repo_id in self.repos:
            return JSONResponse({"error": "You already created this repo", **answer}, status_code=409)
        self.repos[repo_id] = Repo(private=wanted.get("visibility") == "private")
        self.repos[repo_id].add("initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)})
        return JSONResponse(answer)

    async def _validate(self, request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    async def _info(self, request: Request) -> Response:
        repo_id = _repo_name(request.path_params)
        oid, commit = self._commit_of(request)
        files = [{"rfilename": path} for path in commit.files]
        private = self.repos[repo_id].private
        return JSONResponse({"id": repo_id, "sha": oid, "private": private, "tags": [], "siblings": files})

    async def _refs(self, request: Request) -> Response:
        repo = self._repo(request)
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.main}]
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in repo.tags.items()]
        return JSONResponse({"branches": branches, "converts": [], "tags": tags})

    async def _tree(self, request: Request) -> Response:
        """Files below a path; all of them, whether or not a recursive listing is asked for."""
        _, commit = self._commit_of(request)
        below = request.path_params.get("path")
        files = {path: file for path, file in commit.files.items() if not below or path.startswith(f"{below}/")}
        if below and not files:
            raise _RefusedError(404, "Entry not found", "EntryNotFound")
        return JSONResponse([_entry(path, file) for path, file in files.items()])

    async def _paths(self, request: Request) -> Response:
        """The requested paths that are files."""
        _, commit = self._commit_of(request)
        body = await request.body()
        paths = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
        found = [(path, commit.files[path]) for path in paths if path in commit.files]
        return JSONResponse([_entry(path, file) for path, file in found])

    async def _preupload(self, request: Request) -> Response:
        _, commit = self._commit_of(request)
        files = []
        for asked in (await request.json())["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            there = {"oid": commit.files[path].oid} if path in commit.files else {}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **there})
        return JSONResponse({"files": files})

    async def _lfs(self, request: Request) -> Response:
        self._repo(request, to_write=True)
        objects = []
        for asked in (await request.json())["objects"]:
            is_there = asked["oid"] in self._blobs
            actions = {} if is_there else {"actions": {"upload": {"href": f"{self.url}/lfs/{asked['oid']}"}}}
            objects.append({"oid": asked["oid"], "size": asked["size"], **actions})
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _upload(self, request: Request) -> Response:
        content, oid = await request.body(), request.path_params["oid"]
        if hashlib.sha256(content).hexdigest() != oid:
            raise _RefusedError(400, "the content is not what was announced")
        self._blobs[oid] = content
        return Response()

    async def _commit(self, request: Request) -> Response:
        repo = self._repo(request, to_write=True)
        oid, parent = self._commit_of(request)
        files, title = dict(parent.files), ""
        for line in (await request.body()).splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", oid) != oid:
                    raise _RefusedError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
            elif key == "lfsFile":
                files[value["path"]] = File(self._blobs[value["oid"]], is_lfs=True)
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise _RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise _RefusedError(400, f"{key} is more than this Hub can")
        oid = repo.add(title, files)
        url = f"{self.url}/{_repo_name(request.path_params)}/commit/{oid}"
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url})

    async def _tag(self, request: Request) -> Response:
        repo = self._repo(request, to_write=True)
        oid, _ = self._commit_of(request)
        tag = (await request.json())["tag"]
        if tag in repo.tags:
            raise _RefusedError(409, "Tag reference exists already")
        repo.tags[tag] = oid
        return JSONResponse({})

    async def _download(self, request: Request) -> Response:
        oid, commit = self._commit_of(request)
        file = commit.files.get(request.path_params["path"])
        if file is None:
            raise _RefusedError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": oid})
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file.oid}"'}
        if file.is_lfs:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(file.content))}
        return Response(file.content, headers=headers, media_type="application/octet-stream")


def _repo_name(place: dict[str, str]) -> str:
    """Key of `LoopbackHub.repos`, from the parameters of a path."""
    kind = place.get("kind")
    prefix = f"{kind}/" if kind in ("datasets", "spaces") else ""
    return f"{prefix}{place['owner']}/{place['name']}"


def _entry(path: str, file: File) -> dict:
    """A file in a listing."""
    size = len(file.content)
    lfs = {"lfs": {"oid": file.oid, "size": size, "pointerSize": 134}} if file.is_lfs else {}
    return {"type": "file", "path": path, "size": size, "oid": file.oid, **lfs}


class _RefusedError(Exception):
    """Arguments of `_error`."""


def _error(status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> Response:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
    return JSONResponse({"error": message}, status_code=status, headers=headers)


class _HalfResponse(Response):
    """Announces content that does not come: the server closes the connection."""

    async def __call__(self, scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})


def _is_known(request: Request) -> bool:
    return "authorization" in request.headers


if __name__ == "__main__":
    hub = LoopbackHub(int(sys.argv[1]))
    print(f"HF_ENDPOINT={hub.url} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1", flush=True)
    hub.serve()
