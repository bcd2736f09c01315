"""Downloads from a local server with various kinds of responses and failures."""

import hashlib
import http.server
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from otus._files import cache_folder
from otus.errors import FetchError, UsageError
from otus.zoo.hub import fetch

CONTENT = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append(self.path)
        if self.path.startswith("/absent"):
            self.send_error(404, "Not Found")
            return
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/w.bin")
            self.end_headers()
            return
        self.send_response(200)
        if not self.path.startswith("/unsized"):
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path.startswith("/broken") else CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["w.bin", "unsized.bin", "moved.bin", "w.bin?version=2"])
@pytest.mark.parametrize("digits", [None, 8, 64])
def test_files_are_downloaded_once(server, tmp_path, capfd, name, digits):
    sha256 = DIGEST[:digits] if digits else None
    path = fetch(f"{server.url}/models/../{name}" if name == "w.bin" else f"{server.url}/{name}", cache_dir=tmp_path)
    assert path.read_bytes() == CONTENT
    assert files_in(tmp_path) == [path]
    out, err = capfd.readouterr()
    assert out == ""
    assert f"Downloading {server.url}/" in err
    assert str(path) in err.replace("\n", "")
    requests = len(server.seen)
    url = f"{server.url}/models/../{name}" if name == "w.bin" else f"{server.url}/{name}"
    assert fetch(url, sha256=sha256, cache_dir=tmp_path) == path
    assert len(server.seen) == requests
    assert capfd.readouterr().err == ""


def test_a_file_with_another_hash_is_removed(server, tmp_path):
    wrong = "0123456789abcdef"
    with pytest.raises(FetchError, match=f"expected .* sha256 {wrong}…, got {DIGEST}"):
        fetch(f"{server.url}/w.bin", sha256=wrong, cache_dir=tmp_path)
    assert files_in(tmp_path) == []
    path = fetch(f"{server.url}/w.bin", sha256=DIGEST[:8].upper(), cache_dir=tmp_path)
    path.write_bytes(b"put here by hand, and wrong")
    with pytest.raises(FetchError, match="removed"):
        fetch(f"{server.url}/w.bin", sha256=DIGEST, cache_dir=tmp_path)
    assert fetch(f"{server.url}/w.bin", sha256=DIGEST, cache_dir=tmp_path).read_bytes() == CONTENT


def test_a_broken_transfer_leaves_nothing(server, tmp_path):
    with pytest.raises(FetchError, match=f"ended after {len(CONTENT) // 2} of {len(CONTENT)} bytes"):
        fetch(f"{server.url}/broken.bin", cache_dir=tmp_path)
    assert files_in(tmp_path) == []


def test_an_http_error_is_reported(server, tmp_path):
    with pytest.raises(FetchError, match=r"absent\.bin: the server answered 404 Not Found; download the file yourself"):
        fetch(f"{server.url}/absent.bin", cache_dir=tmp_path)


def test_without_network_the_error_has_a_remedy(tmp_path):
    with socket.socket() as taken:  # bound, not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/models/w.bin"
        with pytest.raises(FetchError, match="Check the network connection") as error:
            fetch(url, cache_dir=tmp_path, packaged=("otus_small", "otus_tiny"))
    place = tmp_path / "weights" / f"127.0.0.1%3A{url.split(':')[2].split('/')[0]}" / "models" / "w.bin"
    for text in (url, str(place), "otus_small, otus_tiny"):
        assert text in str(error.value)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(CONTENT)
    assert fetch(url, cache_dir=tmp_path, sha256=DIGEST) == place


def test_a_file_url_is_the_file_itself(tmp_path):
    original = tmp_path / "my weights.bin"
    original.write_bytes(CONTENT)
    assert fetch(original.as_uri(), sha256=DIGEST[:8]) == original
    with pytest.raises(FetchError, match="sha256 00000000…, got"):
        fetch(original.as_uri(), sha256="00000000")
    assert original.exists()
    with pytest.raises(FetchError, match="no such file"):
        fetch((tmp_path / "absent.bin").as_uri())


@pytest.mark.parametrize("url", ["ftp://host/w.bin", "w.bin", "https://host", "https://host/", "javascript:1"])
def test_invalid_urls(url, tmp_path):
    with pytest.raises(UsageError, match="http, https or file"):
        fetch(url, cache_dir=tmp_path)


@pytest.mark.parametrize("sha256", ["", "1234567", "no hash at all", DIGEST + "0"])
def test_invalid_hashes(sha256, tmp_path):
    with pytest.raises(UsageError, match="hexadecimal"):
        fetch("https://host/w.bin", sha256=sha256, cache_dir=tmp_path)


def test_a_url_cannot_leave_the_cache(server, tmp_path):
    path = fetch(f"{server.url}/../..//%2e%2e/../w.bin", cache_dir=tmp_path / "cache")
    assert path.resolve().is_relative_to(tmp_path / "cache")
    assert files_in(tmp_path) == [path]


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "weights").write_text("a file where a folder should be")
    with pytest.raises(FetchError, match="could not be written to"):
        fetch(f"{server.url}/w.bin", cache_dir=tmp_path)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("OTUS_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("OTUS_CACHE")
    assert cache_folder() == tmp_path / "b" / "otus"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "otus"


def test_two_simultaneous_downloads_leave_one_complete_file(server, tmp_path):
    program = (
        "import sys; from otus.zoo.hub import fetch; sys.stdin.readline();"
        f"print(fetch('{server.url}/w.bin', sha256='{DIGEST}', cache_dir=r'{tmp_path}'))"
    )
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate("go\n", timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    [path] = files_in(tmp_path)
    assert [out.strip() for out, _ in answers] == [str(path)] * 2
    assert path.read_bytes() == CONTENT
