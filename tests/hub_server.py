"""A hub on loopback: the part of the Hugging Face Hub's HTTP interface that small uploads and downloads need."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REVISION = "1" * 40


class Handler(BaseHTTPRequestHandler):
    """Keeps the files of each repository in memory, in one revision."""

    protocol_version = "HTTP/1.1"

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.strip("/").split("/")
        address, name = f"http://{self.headers['Host']}", "/".join(parts[2:4])
        if self.path == "/api/repos/create":
            made = json.loads(body)
            name = f"{made['organization']}/{made['name']}"
            self.server.repositories.setdefault(name, {})
            self.answer({"url": f"{address}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif parts[4] == "preupload":
            fate = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": each["path"], **fate} for each in json.loads(body)["files"]]})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[name][line["value"]["path"]] = content
            url = f"{address}/{name}/commit/{REVISION}"
            self.answer({"success": True, "commitOid": REVISION, "commitUrl": url})

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_list = parts[0] == "api"
        repository = self.server.repositories.get("/".join(parts[2:4] if is_list else parts[:2]))
        if repository is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif is_list and parts[4:] and parts[5] not in ("main", REVISION):
            self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        elif is_list and parts[4:5] == ["tree"]:
            oids = {name: hashlib.sha1(content).hexdigest() for name, content in repository.items()}
            sizes = {name: len(content) for name, content in repository.items()}
            self.answer([{"type": "file", "path": name, "oid": oids[name], "size": sizes[name]} for name in repository])
        elif is_list:
            names = [{"rfilename": name} for name in repository]
            self.answer({"id": "/".join(parts[2:4]), "sha": REVISION, "siblings": names})
        else:
            content = repository["/".join(parts[4:])]
            self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=REVISION)

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def hub():
    """Run a hub; yield its address and the files of its repositories."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.repositories
    finally:
        server.shutdown()
        server.server_close()
