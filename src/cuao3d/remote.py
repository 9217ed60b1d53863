"""Folders at URLs: files that are brought to this machine, whole, by whatever fsspec opens."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from cuao3d.download import is_offline
from cuao3d.errors import InputError, NotFoundError, NotInstalledError, UserError
from cuao3d.files import cache_folder, write_chunks
from cuao3d.names import as_file_name

CHUNK = 1 << 23
"""Bytes that are asked for at a time."""

LARGEST = 1 << 28
"""Bytes of a file of which nothing states the size, at most: it is JSON, a table of labels or a basis."""

REFUSED = ("blockcache", "cached", "filecache", "generic", "reference", "simplecache")
"""Protocols that lead elsewhere, run what a file says, or write copies of their own."""

_PASSWORD = re.compile(r"(?:https?|s?ftp|ssh|smb|webdav)://[^/]*:[^/]*@")


@dataclass(frozen=True)
class RemoteFolder:
    """A folder at a URL, of which files are brought when they are needed.

    Attributes:
        url: The URL, as fsspec takes it; further files of a chain stand behind "::".
    """

    url: str

    def __post_init__(self) -> None:
        """Refuse a URL that is not to be opened.

        Raises:
            InputError: It has a password in it, or a protocol of `REFUSED`.
        """
        if _PASSWORD.search(self.url):
            raise InputError(
                "A URL must not hold a password, which reports would show. Give it as the tool of that place wants it: "
                "in the environment, in a file of its own, or in fsspec's configuration."
            )
        for protocol in re.split("://|::", self.url):
            if protocol in REFUSED:
                raise InputError(
                    f"{self.url} is not opened: {protocol} leads elsewhere, runs what a file says or writes copies of "
                    "its own. Name the place itself; what is read is kept on this machine anyway."
                )

    @property
    def copy(self) -> Path:
        """Folder of this machine into which files are brought: in the cache, called as the one at the URL."""
        links = [link.partition("://")[2].strip("/") for link in self.url.split("::")]
        name = as_file_name(next(filter(None, links), "store").rpartition("/")[2])
        return cache_folder() / "stores" / hashlib.sha256(self.url.encode()).hexdigest()[:16] / name[:100]

    def bring(self, file: str, path: Path, *, sha256: str | None = None, num_bytes: int | None = None) -> bool:
        """Bring a file, whole or not at all; what is here already is replaced.

        Args:
            file: Its path below the URL.
            path: File to write.
            sha256: SHA-256 that it has; None: nothing states it.
            num_bytes: Its size; None: nothing states it, and it has at most `LARGEST`.

        Returns:
            Whether there is such a file.

        Raises:
            InputError: It is another file than the one stated, or the URL cannot be opened.
            NotFoundError: The place did not give it, or `CUAO3D_OFFLINE` is set.
            NotInstalledError: fsspec, or what it needs for this URL, is not installed.
            DiskFullError: There is no room for it.
        """
        with self._telling(file):
            try:
                system, root = self._open()
                stream = system.open(self._join(root, file), "rb")
            except UserError:
                raise
            except FileNotFoundError as error:
                if _is_lost(error):
                    raise
                return False
        with stream:
            write_chunks(path, self._chunks(stream, file, sha256, num_bytes), durable=False)
        return True

    def names(self, folder: str) -> tuple[str, ...]:
        """List what lies in a folder below the URL.

        Raises:
            NotFoundError: The place does not list it.
        """
        with self._telling(f"a list of {folder}"):
            system, root = self._open()
            paths = system.ls(self._join(root, folder), detail=False)
        names = {path.rstrip("/").rpartition("/")[2] for path in paths}
        return tuple(sorted(map(unquote, names) if self._is_http else names))

    def forget(self) -> None:
        """Let what fsspec remembers of the place be asked for anew."""
        with suppress(FileNotFoundError), self._telling("an answer"):  # which is said of the first file
            self._open()[0].invalidate_cache()

    def damaged(self, file: str, reason: str) -> InputError:
        """Return the error for a file that is not the one that it should be."""
        return InputError(f"{self.url}/{file} is damaged: {reason}. Copy it there again from where it was made.")

    @property
    def _is_http(self) -> bool:
        return self.url.startswith(("http://", "https://"))

    def _open(self) -> tuple[Any, str]:
        """Return a file system and the folder in it; anew in each process, for what is open does not survive a fork."""
        if is_offline():
            raise NotFoundError(
                f"{self.url} cannot be asked, for CUAO3D_OFFLINE forbids it, and what is wanted of it was not read "
                "before. Unset it."
            )
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise NotInstalledError(f"{self.url} needs fsspec: pip install 'cuao3d[remote]'") from None
        opened: tuple[Any, str] = url_to_fs(self.url)
        return opened

    def _join(self, root: str, file: str) -> str:
        name = quote(file) if self._is_http else file
        return f"{root.rstrip('/')}/{name}" if root else name

    def _chunks(self, stream: Any, file: str, sha256: str | None, num_bytes: int | None) -> Iterator[bytes]:
        """Yield what is read, and raise at the end, or once it is too much, unless it is what is expected."""
        digest, count, most = hashlib.sha256(), 0, LARGEST if num_bytes is None else num_bytes
        while True:
            with self._telling(file):
                chunk = stream.read(CHUNK)
            if not chunk:
                break
            if (count := count + len(chunk)) > most:
                raise self.damaged(file, f"it has more than {most} bytes")
            digest.update(chunk)
            yield chunk
        if num_bytes not in (None, count):
            raise self.damaged(file, f"it has {count} bytes, not {num_bytes}")
        if sha256 not in (None, digest.hexdigest()):
            raise self.damaged(file, "its SHA-256 is not the one that was recorded")

    @contextmanager
    def _telling(self, file: str) -> Iterator[None]:
        """Tell of an error of fsspec, or of what carries it, in a line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of botocore, aiohttp, paramiko and so on
            raise self._refusal(file, error) from error

    def _refusal(self, file: str, error: Exception) -> UserError:
        """Return what to tell a user of an error."""
        while isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if isinstance(error, ImportError):
            return NotInstalledError(f"{self.url} needs a package more: {reason}. Install it with pip.")
        if isinstance(error, ValueError) and "rotocol not known" in reason:
            return InputError(f"{self.url} cannot be opened: {reason}. Is the URL spelled correctly?")
        return NotFoundError(
            f"{self.url} did not give {file} ({reason}). Is there a network, and may you read there? With "
            "CUAO3D_OFFLINE=1, what was read before is used."
        )


def _is_lost(error: FileNotFoundError) -> bool:
    """Say whether a file that was not found may be there: fsspec says the same of a server that did not answer."""
    cause = error.__cause__
    while isinstance(cause, FileNotFoundError):
        cause = cause.__cause__
    if type(cause).__module__.startswith("aiohttp"):
        return getattr(cause, "status", None) not in (404, 410)
    return isinstance(cause, OSError)
