"""Oracle: literals; a small hub on this machine's loopback address plays huggingface.co.

No network: the endpoint is a server of this process, the client a child process with its own cache.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint, write_json

pytest.importorskip("huggingface_hub")
pytest.importorskip("qwen35._core")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLIENT = """
import json, sys
from qwen35.loading import open_checkpoint
for source, arguments in json.loads(sys.argv[1]):
    steps = []
    if arguments.get("progress") == "count":
        arguments["progress"] = lambda *step: steps.append(step)
    try:
        found = open_checkpoint(source, **arguments)
        names = sorted(p.name for p in found.path.iterdir())
        result = ["ok", found.name, found.revision, len(found.tensors), names, steps[-1:]]
    except Exception as error:
        result = [type(error).__name__, str(error), isinstance(error, OSError)]
    print(json.dumps(result))
"""


class Hub:
    """Repositories by id, each a folder or a refusal; the log holds every path asked for."""

    def __init__(self, repositories: dict[str, Path | tuple[int, str]]) -> None:
        self.repositories, self.log = repositories, []
        self.cut = ""  # the file whose body ends early
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = request.path.partition("?")[0]
        self.log.append(path)
        parts = path.removeprefix("/api/models").strip("/").split("/")
        home = self.repositories.get("/".join(parts[:2]), (404, "RepoNotFound"))
        if isinstance(home, tuple):
            self.send(request, home[0], b"", {"X-Error-Code": home[1]})
        elif parts[2] == "revision":
            known = parts[3] in ("main", COMMIT)
            info = json.dumps({"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": []}).encode()
            error = {} if known else {"X-Error-Code": "RevisionNotFound"}
            self.send(request, 200 if known else 404, info, error)
        elif parts[2] == "tree":
            tree = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name}
                for p in sorted(home.iterdir())
            ]
            self.send(request, 200, json.dumps(tree).encode(), {})
        else:
            data = (home / parts[-1]).read_bytes()
            headers = {"ETag": f'"{parts[-1]}"', "X-Repo-Commit": COMMIT}
            short = self.cut == parts[-1] and body
            self.send(
                request, 200, data, headers, body=body, sent=len(data) // 2 if short else None
            )

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        headers: dict[str, str],
        *,
        body: bool = True,
        sent: int | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(data[:sent])
        request.close_connection = sent is not None


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a good model in shards, files beside it that are not wanted, and refusals."""
    folder = tmp_path_factory.mktemp("hub")
    good = write_checkpoint(folder / "good", shards=2)
    for name in ("evil.py", "pytorch_model.bin", "model-extra.safetensors", "consolidated.gguf"):
        (good / name).write_bytes(b"unwanted")
    other = write_checkpoint(folder / "other", tokenizer=False)
    write_json(other / "config.json", {"model_type": "llama"})
    hub = Hub(
        {
            "me/good": good,
            "me/llama": other,
            "me/gated": (403, "GatedRepo"),
            "me/private": (401, "RepoNotFound"),
            "me/down": (400, ""),
        }
    )
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def ask(
    hub_url: str, cache: Path, calls: list[tuple[str, dict[str, Any]]], **environment: str
) -> list[Any]:
    """The client's result for each (source, arguments), in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    run = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(calls)],
        capture_output=True,
        text=True,
        timeout=300,
        env=clean | {"HF_ENDPOINT": hub_url, "HF_HOME": str(cache)} | environment,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.fixture(scope="module")
def answers(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One client for all that needs the hub: its start is the slow part."""
    cache = tmp_path_factory.mktemp("cache")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("me/good", {"progress": "count"}),
        ("me/good", {"revision": COMMIT}),
        ("me/good", {"revision": "v9"}),
        ("me/llama", {}),
        ("me/gated", {}),
        ("me/private", {}),
        ("me/missing", {}),
        ("me/down", {}),
        ("me/--bad..name", {}),
        ("me/absent", {"local_files_only": True}),
        ("me/good", {"local_files_only": True}),
    ]
    results = ask(hub.url, cache, calls)
    keys = [f"{source} {' '.join(arguments)}".strip() for source, arguments in calls]
    keys[2] += " v9"
    return dict(zip(keys, results, strict=True)) | {"cache": cache}


def test_download(answers: dict[str, Any]) -> None:
    word, name, revision, tensors, files, steps = answers["me/good progress"]
    assert (word, name, revision) == ("ok", "me/good", COMMIT)
    assert tensors > 100
    assert files == [
        "chat_template.jinja",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert steps[0][2] == "download" and steps[0][0] > 0
    assert answers["me/good revision"][:3] == ["ok", "me/good", COMMIT]


def test_weights_of_another_kind_are_not_downloaded(hub: Hub, answers: dict[str, Any]) -> None:
    assert answers["me/llama"][0] == "UnsupportedModelError"
    assert "model_type='llama'" in answers["me/llama"][1]
    assert not any("me/llama" in path and "safetensors" in path for path in hub.log)


def test_cache_needs_no_network(answers: dict[str, Any]) -> None:
    assert answers["me/good local_files_only"][0] == "ok"
    offline = ask(
        "http://127.0.0.1:9",  # nobody listens there
        answers["cache"],
        [("me/good", {}), ("me/absent", {})],
        HF_HUB_OFFLINE="1",
    )
    assert offline[0][:2] == ["ok", "me/good"]
    assert offline[1][2] is True
    assert "HF_HUB_OFFLINE is set" in offline[1][1] and "HF_HUB_OFFLINE=0" in offline[1][1]


def test_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    word, message, is_os_error = ask("http://127.0.0.1:9", tmp_path, [("me/good", {})])[0]
    assert is_os_error and "could not be reached" in message and "try again" in message


@pytest.mark.parametrize(
    ("call", "part"),
    [
        ("me/good revision v9", "no such revision 'v9'"),
        ("me/gated", "access is gated"),
        ("me/private", "no such model on the hub, or it is private"),
        ("me/missing", "no such model on the hub, or it is private"),
        ("me/absent local_files_only", "load it once without local_files_only"),
        ("me/down", "me/down"),
    ],
)
def test_refusals_say_what_to_do(answers: dict[str, Any], call: str, part: str) -> None:
    word, message, is_os_error = answers[call]
    assert is_os_error and part in message


def test_names_the_hub_cannot_have(answers: dict[str, Any]) -> None:
    word, message, _ = answers["me/--bad..name"]
    assert word in ("ValueError", "FileNotFoundError") and "me/--bad..name" in message


def test_connection_that_breaks_off(hub: Hub, tmp_path: Path) -> None:
    """The body of a shard ends early: an OSError, and the next attempt succeeds."""
    hub.cut = "model-00002-of-00002.safetensors"
    word, message, is_os_error = ask(hub.url, tmp_path, [("me/good", {})])[0]
    hub.cut = ""
    assert is_os_error and "me/good" in message and "resumes" in message
    assert ask(hub.url, tmp_path, [("me/good", {})])[0][:2] == ["ok", "me/good"]
