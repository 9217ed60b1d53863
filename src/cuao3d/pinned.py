"""Files at fixed addresses, each known by its SHA-256: downloaded whole or not at all."""

from pathlib import Path
from typing import Any

from cuao3d.console import progress_bar
from cuao3d.durable import naming_disk_errors
from cuao3d.errors import NotFoundError, NotInstalledError

TRIES = 3
"""Times that a download is tried before it is given up; between two of them it waits a second or more."""


def download_pinned(address: str, path: Path, sha256: str) -> None:
    """Download a file, unless it is there already; a bar shows how far it is.

    It gets its name when it is whole and its SHA-256 is right; a download that was cut off leaves nothing.

    Args:
        address: Where it lies, http or https.
        path: File to write; its folder is made if it is not there.
        sha256: Its SHA-256, in hexadecimal.

    Raises:
        NotInstalledError: pooch is not installed.
        NotFoundError: The address did not give it, or gave another file.
    """
    try:
        import pooch
        from requests.exceptions import ConnectionError as NoConnection
        from requests.exceptions import RequestException
    except ImportError:
        raise NotInstalledError("Downloads need pooch: pip install pooch") from None
    pooch.get_logger().setLevel("ERROR")
    files = pooch.create(
        path.parent,
        base_url="",
        registry={path.name: f"sha256:{sha256}"},
        urls={path.name: address},
        retry_if_failed=TRIES - 1,
    )
    try:
        with progress_bar() as bar, naming_disk_errors(path):
            files.fetch(path.name, downloader=pooch.HTTPDownloader(progressbar=_Bar(bar, path.name)))
    except (RequestException, ValueError) as error:  # pooch's word for another hash is a ValueError
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        reason = "no connection" if isinstance(error, NoConnection) else first_line
        raise NotFoundError(
            f"{address} did not give the file ({reason}). Is there a network? Try again later."
        ) from error


class _Bar:
    """A bar of rich that pooch can move."""

    def __init__(self, bar: Any, title: str) -> None:
        self._bar, self._task, self._total = bar, bar.add_task(title, total=None), 0

    @property
    def total(self) -> int:
        return self._total

    @total.setter
    def total(self, size: int) -> None:
        self._total = size
        self._bar.update(self._task, total=size or None)

    def update(self, size: int) -> None:
        self._bar.advance(self._task, size)

    def reset(self) -> None:
        self._bar.reset(self._task)

    def close(self) -> None:
        """Leave the bar to the others that it is drawn with."""
