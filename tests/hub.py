"""A Hugging Face Hub on loopback, good enough for unmodified clients.

It keeps repositories in memory, speaks the routes that `huggingface_hub`, `transformers` and `datasets` use to create,
upload to and download from them, and fails on demand.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopbackToken"
USER = "user"
# Before a script's name: the client tries again without the waiting that is its own.
IMPATIENT = (
    "-c",
    "import runpy, sys, time; time.sleep = lambda seconds: None; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')",
)
DATE = "2026-01-01T00:00:00.000Z"
LFS_ENDINGS = (".safetensors", ".parquet", ".onnx", ".pt", ".bin")


@dataclass
class Repo:
    kind: str  # "model" or "dataset"
    name: str
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)  # branch: commit
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        sha = hashlib.sha1(f"{self.kind}/{self.name}/{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        revision = self.refs.get(revision) or self.tags.get(revision) or revision
        return revision if revision in self.commits else None

    @property
    def files(self) -> dict[str, bytes]:
        """What is on `main`."""
        return self.commits[self.refs["main"]]


@dataclass
class Fault:
    """The answer to the next requests that match.

    Attributes:
        request: a pattern, searched in "METHOD /path".
        status: of the answer; 0 cuts the connection.
        times: how many requests it spoils; -1 for all.
        headers, body: of the answer.
    """

    request: str
    status: int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""


class Hub:
    """Starts on use as a context manager; `url` is what `HF_ENDPOINT` requires: the same for all of a process, so that
    programs that ask it need not import anew what reads its address."""

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.tokens = {TOKEN}
        self.connections: list[socket.socket] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", _port()), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:  # which a client would else keep, and ask the next Hub through
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def create(self, name: str, kind: str = "model", files: dict[str, bytes] | None = None, **settings) -> Repo:
        repo = self.repos[kind, name] = Repo(kind, name, **settings)
        repo.commit(files or {".gitattributes": b""})
        return repo

    def model(self, name: str) -> Repo:
        return self.repos["model", name]

    def fail(self, request: str, status: int, **more) -> None:
        self.faults.append(Fault(request, status, **more))

    def environment(self, home: str, token: str | None = TOKEN) -> dict[str, str]:
        """What a process needs to take this for the Hub, with caches of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": home,
            "HF_DATASETS_CACHE": f"{home}/datasets",
            "HF_HUB_DISABLE_XET": "1",  # whose protocol is not HTTP alone
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": token or "",
        }


@cache
def _port() -> int:
    """Which is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.connection)

    def log_message(self, *args):
        pass

    # ---- Answers ----

    def answer(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    # ---- Requests ----

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            self.body = b"".join(parts)
        else:
            self.body = self.rfile.read(length)
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        request = f"{self.command} {parts.path}"
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times and re.search(fault.request, request):
                    fault.times -= 1
                    if fault.status == 0:
                        self.close_connection = True
                        self.connection.close()
                        return
                    self.answer(fault.status, fault.body.encode(), **fault.headers)
                    return
            for pattern, method in ROUTES:
                match = re.fullmatch(pattern, request)
                if match:
                    method(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
                    return
            self.refuse(404, "EntryNotFound", f"no route for {request}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    @property
    def token(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return token if token in self.hub.tokens else None

    def repo(self, kind: str, name: str, write: bool = False, content: bool = False) -> Repo | None:
        """The repository, or `None` once the refusal has been sent."""
        sent = self.headers.get("Authorization")
        if sent and not self.token:
            return self.refuse(401, "", "Invalid username or password.")
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self.token):
            return self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
        if write and not self.token:
            return self.refuse(401, "", "Invalid username or password.")
        if content and repo.gated:
            return self.refuse(403, "GatedRepo", f"Access to {name} is restricted.")
        return repo

    def commit(self, repo: Repo | None, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if repo is None:
            return None
        sha = repo.resolve(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repo.commits[sha]

    # ---- Routes ----

    def whoami(self) -> None:
        if not self.token:
            return self.refuse(401, "", "Invalid username or password.")
        self.answer(200, {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {}})

    def create(self) -> None:
        wanted = json.loads(self.body)
        kind, name = wanted.get("type", "model"), f"{wanted.get('organization') or USER}/{wanted['name']}"
        if not self.token:
            return self.refuse(401, "", "Invalid username or password.")
        if not name.startswith(f"{USER}/"):
            return self.refuse(403, "", f"You don't have the rights to create a {kind} under this namespace")
        url = f"{self.hub.url}/{'datasets/' * (kind == 'dataset')}{name}"
        if (kind, name) in self.hub.repos:
            return self.answer(409, {"error": "You already created this repo", "url": url})
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.create(name, kind, private=bool(private))
        self.answer(200, {"url": url, "name": name, "id": "0"})

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        repo = self.repo(kind, name)
        if found := self.commit(repo, revision or "main"):
            sha, files = found
            self.answer(
                200,
                {
                    "_id": "0",
                    "id": name,
                    "sha": sha,
                    "private": repo.private,
                    "gated": "auto" if repo.gated else False,
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "lastModified": DATE,
                    "createdAt": DATE,
                    "siblings": [{"rfilename": path} for path in files],
                    **({"modelId": name} if kind == "model" else {}),
                },
            )

    def refs(self, kind: str, name: str) -> None:
        if repo := self.repo(kind, name):
            listed = {
                "branches": [
                    {"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in repo.refs.items()
                ],
                "tags": [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": sha} for n, sha in repo.tags.items()],
            }
            self.answer(200, listed | {"converts": []})

    def entries(self, files: dict[str, bytes]) -> dict[str, dict]:
        """Files and folders by path, as listed by the Hub."""
        listed = {}
        for path, content in files.items():
            for parent in _parents(path):
                listed[parent] = {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0}
            oid = hashlib.sha1(content).hexdigest()
            listed[path] = {"type": "file", "path": path, "oid": oid, "size": len(content)}
            if path.endswith(LFS_ENDINGS):
                sha256 = hashlib.sha256(content).hexdigest()
                listed[path]["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
        return listed

    def tree(self, kind: str, name: str, revision: str, path: str = "") -> None:
        if found := self.commit(self.repo(kind, name), revision):
            listed, folder = self.entries(found[1]), path.strip("/")
            if folder and listed.get(folder, {}).get("type") != "directory":
                return self.refuse(404, "EntryNotFound", f"{folder} does not exist")
            inside = [e for p, e in listed.items() if p.startswith(f"{folder}/" if folder else "")]
            if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
                depth = folder.count("/") + 1 if folder else 0
                inside = [entry for entry in inside if entry["path"].count("/") == depth]
            self.answer(200, inside)

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        if found := self.commit(self.repo(kind, name), revision):
            listed = self.entries(found[1])
            if "json" in self.headers.get("Content-Type", ""):
                paths = json.loads(self.body)["paths"]
            else:
                paths = parse_qs(self.body.decode())["paths"]
            paths = [paths] if isinstance(paths, str) else paths
            self.answer(200, [listed[path] for path in paths if path in listed])

    def preupload(self, kind: str, name: str, revision: str) -> None:
        repo = self.repo(kind, name, write=True)
        if self.commit(repo, revision):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self.answer(200, {"files": modes})

    def lfs_batch(self, kind: str, name: str) -> None:
        if self.repo("dataset" if kind else "model", name, write=True):
            objects = []
            for item in json.loads(self.body)["objects"]:
                upload = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}}}
                known = item["oid"] in self.hub.blobs
                objects.append(item | ({} if known else {"actions": upload}))
            self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer(400, b"hash mismatch")
        self.hub.blobs[oid] = self.body
        self.answer(200)

    def make_commit(self, kind: str, name: str, revision: str) -> None:
        repo = self.repo(kind, name, write=True)
        if not (found := self.commit(repo, revision)):
            return
        files = dict(found[1])
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    return self.refuse(400, "", f"{value['path']}: the LFS object was never uploaded")
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            elif key == "deletedFolder":
                files = {path: c for path, c in files.items() if not path.startswith(value["path"].rstrip("/") + "/")}
        sha = repo.commit(files, revision)
        prefix = "datasets/" * (kind == "dataset")
        self.answer(
            200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{prefix}{name}/commit/{sha}"}
        )

    def branch(self, kind: str, name: str, branch: str) -> None:
        if repo := self.repo(kind, name, write=True):
            if branch in repo.refs:
                return self.answer(409, {"error": "Reference already exists"})
            start = json.loads(self.body or b"{}").get("startingPoint", "main")
            repo.refs[branch] = repo.resolve(start)
            self.answer(200, {})

    def tag(self, kind: str, name: str, revision: str) -> None:
        if found := self.commit(repo := self.repo(kind, name, write=True), revision):
            repo.tags[json.loads(self.body)["tag"]] = found[0]
            self.answer(200, {})

    def validate_yaml(self) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self.repo("dataset" if kind else "model", name, content=True)
        if not (found := self.commit(repo, revision)):
            return
        sha, files = found
        if path not in files:
            return self.answer(
                404,
                b"Entry not found",
                X_Error_Code="EntryNotFound",
                X_Error_Message="Entry not found",
                X_Repo_Commit=sha,
            )
        content = files[path]
        lfs = path.endswith(LFS_ENDINGS)
        etag = hashlib.sha256(content).hexdigest() if lfs else hashlib.sha1(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if lfs:
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span:
            first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.answer(206, content[first : last + 1], **headers)
        self.answer(200, content, **headers)


def _parents(path: str) -> list[str]:
    folders = path.split("/")[:-1]
    return ["/".join(folders[: depth + 1]) for depth in range(len(folders))]


_API = r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)"
_WEB = r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+?)"
ROUTES = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"GET {_API}(/revision/(?P<revision>[^/]+))?", _Handler.info),
    (rf"GET {_API}/refs", _Handler.refs),
    (rf"GET {_API}/tree/(?P<revision>[^/]+)(?P<path>/.*)?", _Handler.tree),
    (rf"POST {_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (rf"POST {_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (rf"POST {_API}/commit/(?P<revision>[^/]+)", _Handler.make_commit),
    (rf"POST {_API}/branch/(?P<branch>[^/]+)", _Handler.branch),
    (rf"POST {_API}/tag/(?P<revision>[^/]+)", _Handler.tag),
    (rf"POST {_WEB}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /lfs/(?P<oid>[0-9a-f]+)", _Handler.lfs_upload),
    (rf"(GET|HEAD) {_WEB}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
