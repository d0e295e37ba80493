"""A loopback Hub: enough of the Hub's protocol that the real client pushes to it and pulls from it, and faults on request.

    with HubServer() as hub:  # HF_ENDPOINT=hub.url

Large files go through LFS (basic transfers), small ones inside the commit, as on the Hub; there is no Xet storage.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from wavcse.tests.helpers.card_rules import card_errors

TOKEN, USER, ORGANISATION = "hf_loopback", "somebody", "org"
EMPTY_TREE = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet")
REPO = r"(?P<repo>((datasets|spaces)/)?[\w.-]+/[\w.-]+)"  # a data set is kept as datasets/OWNER/NAME, a Space likewise
API = r"/api/(models/)?" + REPO


class Repository:
    """Commits (hash -> files) and branches (name -> hash) of one model, data set or Space."""

    def __init__(self, private: bool):
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.log: list[tuple[str, str]] = []  # (hash, message)
        self.branches: dict[str, str] = {}
        self.commit("main", EMPTY_TREE, "initial commit")

    def resolve(self, revision: str) -> str | None:
        """Commit of a branch or a hash."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Make a commit that holds exactly these files."""
        parts = [self.branches.get(branch, ""), message, *(f"{name} {sha256(files[name])}" for name in sorted(files))]
        sha = hashlib.sha1("\n".join(parts).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        self.log.append((sha, message))
        return sha


class HubServer:
    """The server; a context manager.

    Attributes:
        url: to be set as HF_ENDPOINT.
        storage_url: where large files are, a host of its own as on the Hub.
        repositories: id -> `Repository`.
        fault: "lfs" = the connection breaks in the middle of a large file; "commit" = before a commit is made; else "".
        requests: method and path of every request.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files by SHA-256
        self.fault = ""
        self.requests: list[str] = []
        self.lock = threading.Lock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)

    def __enter__(self) -> HubServer:
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


class Refusal(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, code: str = ""):
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    """One request. Every route is a method that returns (status, headers, body)."""

    protocol_version = "HTTP/1.1"
    hub: HubServer
    routes = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", rf"{API}", "info"),
        ("GET", rf"{API}/revision/(?P<revision>[^/]+)", "info"),
        ("GET", rf"{API}/tree/(?P<revision>[^/]+)(/(?P<below>.+))?", "tree"),
        ("POST", rf"{API}/branch/(?P<branch>[^/]+)", "branch"),
        ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "store"),
        ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify", "verify"),
        ("POST", rf"{API}/commit/(?P<revision>[^/]+)", "commit"),
        ("HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "file"),
        ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "file"),
        ("HEAD", r"/lfs/(?P<oid>[0-9a-f]{64})", "fetch"),
        ("GET", r"/lfs/(?P<oid>[0-9a-f]{64})", "fetch"),
    )

    def answer(self) -> None:
        """Find the route and send what it returns."""
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        self.body = self._read_body(cut=self.command == "PUT" and self.hub.fault == "lfs")
        if self.body is None:
            return
        try:
            status, headers, body = self._route(path)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            status, body = refusal.status, json.dumps({"error": refusal.message}).encode()
        if status:
            self._send(status, headers, body)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *_) -> None:
        """Nothing on stderr."""

    # ---- routes ----

    def whoami(self):
        self._writer()
        return self._json({"name": USER, "type": "user", "orgs": [{"name": ORGANISATION}], "auth": {}})

    def create(self):
        self._writer()
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or USER}/{asked['name']}"
        if repo.partition("/")[0] not in (USER, ORGANISATION):
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {repo.partition('/')[0]!r}")
        repo = f"spaces/{repo}" if asked.get("type") == "space" else repo
        url = {"url": f"{self.hub.url}/{repo}", "name": repo}
        if repo in self.hub.repositories:
            return self._json({**url, "error": "You already created this model repo"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[repo] = Repository(private)
        return self._json(url)

    def validate(self):
        errors = card_errors(json.loads(self.body)["content"])
        answer = {"errors": [{"message": error} for error in errors], "warnings": []}
        return self._json(answer, 400 if errors else 200)

    def info(self, repo, revision="main"):
        repository, sha = self._find(repo, revision)
        siblings = [{"rfilename": name} for name in sorted(repository.commits[sha])]
        repo = repo.removeprefix("datasets/")
        answer = {"id": repo, "modelId": repo, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
        return self._json({**answer, "pipeline_tag": "feature-extraction", "library_name": "transformers"})

    def tree(self, repo, revision, below=None):
        repository, sha = self._find(repo, revision)
        files = repository.commits[sha]
        names = [name for name in sorted(files) if below is None or name.startswith(f"{below}/")]
        if below is not None and not names:
            raise Refusal(404, f"{below} does not exist on {revision!r}", "EntryNotFound")
        start = len(f"{below}/") if below else 0
        deeper = [name for name in names if "/" in name[start:]]
        if "recursive=true" in urlsplit(self.path).query.lower():
            return self._json([_entry(name, files[name]) for name in names])
        folders = dict.fromkeys(name[: name.index("/", start)] for name in deeper)
        entries = [_entry(name, files[name]) for name in names if name not in deeper]
        return self._json([*(_folder(name, sha) for name in folders), *entries])

    def paths_info(self, repo, revision):
        repository, sha = self._find(repo, revision)
        files = repository.commits[sha]
        is_json = self.headers.get("Content-Type", "").startswith("application/json")
        asked = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode()).get("paths", [])
        folders = [name for name in asked if any(file.startswith(f"{name}/") for file in files)]
        entries = [_entry(name, files[name]) for name in asked if name in files]
        return self._json([*entries, *(_folder(name, sha) for name in folders)])

    def branch(self, repo, branch):
        self._writer()
        repository, sha = self._find(repo, json.loads(self.body or b"{}").get("startingPoint") or "main")
        if branch in repository.branches:
            return self._json({"error": "Reference already exists"}, 409)
        repository.branches[branch] = sha
        return self._json({})

    def preupload(self, repo, revision):
        self._writer()
        repository, sha = self._find(repo, revision)
        there = repository.commits[sha]
        files = []
        for file in json.loads(self.body)["files"]:
            name = file["path"]
            mode = "lfs" if name.endswith(LFS_SUFFIXES) else "regular"
            known = {"oid": oid_of(name, there[name])} if name in there else {}
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, **known})
        return self._json({"files": files})

    def batch(self, repo):
        self._writer()
        self._find(repo, "main")
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            href = f"{self.hub.storage_url}/lfs/{wanted['oid']}"
            actions = {"upload": {"href": href, "header": {}}, "verify": {"href": f"{href}/verify", "header": {}}}
            objects.append({**wanted, **({} if wanted["oid"] in self.hub.objects else {"actions": actions})})
        return self._json({"transfer": "basic", "objects": objects})

    def store(self, oid):
        if sha256(self.body) != oid:
            raise Refusal(400, "The content does not have this SHA-256")
        self.hub.objects[oid] = self.body
        return 200, {}, b""

    def verify(self, oid):
        if len(self.hub.objects.get(oid, b"")) != json.loads(self.body)["size"]:
            raise Refusal(404, "Object does not exist")
        return self._json({})

    def commit(self, repo, revision):
        self._writer()
        if self.hub.fault == "commit":
            self.close_connection = True
            return 0, {}, b""
        lines = [json.loads(line) for line in self.body.splitlines()]
        with self.hub.lock:
            repository, sha = self._find(repo, revision)
            if revision not in repository.branches:
                raise Refusal(400, "A commit goes to a branch")
            header = next(line["value"] for line in lines if line["key"] == "header")
            if header.get("parentCommit") not in (None, sha):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = self._apply(lines, dict(repository.commits[sha]))
            sha = repository.commit(revision, files, header["summary"])
        return self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def file(self, repo, revision, name):
        repository, sha = self._find(repo, revision)
        commit = {"X-Repo-Commit": sha}
        if name not in repository.commits[sha]:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content = repository.commits[sha][name]
        oid = oid_of(name, content)
        if name.endswith(LFS_SUFFIXES):
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            return 302, {**commit, **linked, "Location": f"{self.hub.storage_url}/lfs/{oid}"}, b""
        return 200, {**commit, "ETag": f'"{oid}"', "Content-Type": "text/plain"}, content

    def fetch(self, oid):
        if oid not in self.hub.objects:
            raise Refusal(404, "Object does not exist")
        return 200, {"ETag": f'"{oid}"', "Content-Type": "application/octet-stream"}, self.hub.objects[oid]

    # ---- parts ----

    def _route(self, path: str):
        for method, pattern, name in self.routes:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                values = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                return getattr(self, name)(**values)
        raise Refusal(404, f"The loopback Hub does not know {self.command} {path}")

    def _apply(self, lines: list[dict], files: dict[str, bytes]) -> dict[str, bytes]:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(400, f"{value['path']} was never uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return files

    def _find(self, repo: str, revision: str) -> tuple[Repository, str]:
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and self._token() != TOKEN):
            raise Refusal(401, "Repository not found", "RepoNotFound")
        sha = repository.resolve(revision)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, sha

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _writer(self) -> None:
        if self._token() != TOKEN:
            raise Refusal(401, "Invalid credentials in Authorization header")

    def _json(self, value, status: int = 200):
        return status, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(value).encode()

    def _read_body(self, cut: bool) -> bytes | None:
        """The request's body; `None` where a fault cuts the connection in its middle."""
        if cut:
            self.rfile.read(64)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if status == 200 and asked and self.command == "GET":
            start, end = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(body)}"}
            body = body[start : end + 1]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def oid_of(name: str, content: bytes) -> str:
    """As the Hub names a file: SHA-256 of a large one, git's blob hash of a small one."""
    if name.endswith(LFS_SUFFIXES):
        return sha256(content)
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict:
    lfs = {"lfs": {"oid": sha256(content), "size": len(content), "pointerSize": 134}} if name.endswith(LFS_SUFFIXES) else {}
    return {"type": "file", "path": name, "size": len(content), "oid": oid_of(name, content), **lfs}


def _folder(name: str, sha: str) -> dict:
    return {"type": "directory", "path": name, "size": 0, "oid": sha}
