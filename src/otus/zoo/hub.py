"""Download weights once into the user's cache; each download is announced on stderr."""

import hashlib
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from otus._files import cache_folder, fsynced_file
from otus.errors import DataError, FetchError, UsageError

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0


def fetch(
    url: str, *, sha256: str | None = None, cache_dir: str | Path | None = None, packaged: Sequence[str] = ()
) -> Path:
    """Return the local file of a URL, downloaded into the cache if it is not there yet.

    Parameters
    ----------
    url
        An http, https or file URL. For a file URL, the file itself is returned, not a copy.
    sha256
        Expected SHA-256 of the content in hexadecimal digits, or at least its first eight (as in torchvision's file
        names). Checked at every call (default: not checked).
    cache_dir
        Cache folder (default: ``cache_folder()``).
    packaged
        Names of models with packaged weights, which the error message suggests.

    Raises
    ------
    FetchError
        If there is no network, the server refuses, the transfer breaks off, the disk is full, or the hash differs (the
        file in the cache is then removed). A partial download is never left under the file's name.
    UsageError
        If ``url`` is not a URL of a file, or ``sha256`` not a hash.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https", "file") or not Path(parts.path).name:
        raise UsageError(f"{url}: expected the http, https or file URL of a file")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{8,64}", sha256):
        raise UsageError(f"{url}: expected 8 to 64 hexadecimal digits of a sha256, got {sha256!r}")
    if parts.scheme == "file":
        path = Path(urllib.request.url2pathname(parts.path))
        if not path.is_file():
            raise FetchError(f"{url}: there is no such file")
        _check(path, sha256, url=url)
        return path
    path = _cache_path(parts, Path(cache_dir) if cache_dir else cache_folder())
    if path.is_file():
        _check(path, sha256, url=url, remove=True)
        return path
    remedy = f"download the file yourself and save it as {path}" + (
        f", or use a model with packaged weights: {', '.join(packaged)}" if packaged else ""
    )
    try:
        with fsynced_file(path) as stage:
            _download(url, path, stage)
            _check(stage, sha256, url=url, remove=True)
    except urllib.error.HTTPError as error:
        raise FetchError(f"{url}: the server answered {error.code} {error.reason}; {remedy}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise FetchError(
            f"{url}: could not be downloaded ({reason}). Check the network connection, or {remedy}"
        ) from None
    except (OSError, DataError) as error:
        raise FetchError(f"{url}: could not be written to {path}: {error}") from error
    return path


def _cache_path(parts: urllib.parse.SplitResult, folder: Path) -> Path:
    """Return the cache path of a URL, made of the server and path names; never outside the folder, even with ``..``."""
    names = [parts.netloc, *parts.path.split("/")]
    if parts.query:
        names[-1] += f"?{parts.query}"
    safe = [urllib.parse.quote(name, safe="@=+ ") for name in names if name not in ("", ".", "..")]
    return folder.joinpath("weights", *safe)


def _download(url: str, path: Path, stage: Path) -> None:
    console = Console(stderr=True)
    console.print(f"Downloading {url} to {path}", markup=False, highlight=False, soft_wrap=True)
    request = urllib.request.Request(url, headers={"User-Agent": "otus"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response, open(stage, "wb") as file:
        total = int(response.headers["Content-Length"]) if response.headers["Content-Length"] else None
        columns = (TextColumn(path.name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task(path.name, total=total)
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                progress.advance(task, len(chunk))
        if total is not None and file.tell() != total:
            raise ConnectionError(f"the transfer ended after {file.tell()} of {total} bytes")


def _check(path: Path, sha256: str | None, *, url: str, remove: bool = False) -> None:
    if sha256 is None:
        return
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(sha256.lower()):
        if remove:
            path.unlink(missing_ok=True)
        raise FetchError(
            f"{url}: expected content with the sha256 {sha256}{'…' if len(sha256) < 64 else ''}, got {actual}"
            + ("; the file was removed: try again, unless the server now has another file" if remove else "")
        )
