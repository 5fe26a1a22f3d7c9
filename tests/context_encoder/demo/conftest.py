"""The command in a process of its own, and requests to it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

ROOT = Path(__file__).parents[3]


@dataclass
class Server:
    """A page that is served, or will be in a moment."""

    process: subprocess.Popen[str]
    #: Its working folder, which is that of its temporary files too.
    folder: Path

    @functools.cached_property
    def url(self) -> str:
        """Its address, when it is ready."""
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        if not line.startswith("the page is at "):
            self.process.kill()
            pytest.fail(line + self.process.communicate()[1])
        return line.removeprefix("the page is at ").strip()

    def request(
        self, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of the response."""
        request = Request(self.url + path, body, headers)
        try:
            with urlopen(request, timeout=120) as response:
                return response.status, response.read(), dict(response.headers)
        except HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    def post(self, path: str, body: bytes | dict[str, Any]) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return json.loads(self.request(path, data)[1])

    def fill(self, key: str, **asked: Any) -> list[dict[str, Any]]:
        """The events of a fill."""
        data = json.dumps(asked).encode()
        _, body, _ = self.request(f"api/pictures/{key}/fill", data)
        return [json.loads(line) for line in body.splitlines()]


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    environment.pop("DISPLAY", None)
    command = [sys.executable, "-m", "context_encoder.demo", "--port", "0", *options]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield Server(process, folder)
        finally:
            process.kill()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    with serving(tmp_path_factory.mktemp("served"), "--max-upload", "1") as running:
        yield running
