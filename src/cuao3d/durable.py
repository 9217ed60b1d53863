"""Durable files: each is written under a random name, synced and renamed; and locks that end with their process."""

import errno
import fcntl
import os
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import takewhile
from pathlib import Path

from cuao3d.errors import DiskFullError, InputError

PREFIX, SUFFIX = ".cuao3d-", ".partial"
"""Start and end of the name of every temporary file; between them stand random digits."""

LOCK = f"{PREFIX}lock"
"""Name of the file that says which process writes a folder; names of further locks of a folder begin with it."""

WAIT_SECONDS = 0.1
"""Time between two attempts to take a lock."""

CHUNK = 1 << 24
"""Bytes that are written at a time."""

_synced_later: ContextVar[Path | None] = ContextVar("synced_later", default=None)
"""Folder whose entries are synced when a block ends; see `synced_once`."""

_REASON_AND_CURE = {
    errno.ENOSPC: ("There is no space left on the disk", "Make room"),
    errno.EDQUOT: ("The disk quota is used up", "Make room"),
    errno.EROFS: ("The file system is read-only", "Make it writable, or choose another folder"),
}


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[tuple[int, Path]]:
    """Write a file whole: a temporary file takes its place when the block ends, unless it raises.

    Temporary files that dead processes left in the same folder are removed.

    Args:
        path: File to write; its folder is made if missing. Where it is a link, the file that it points to is written.
        durable: Sync the file before it is renamed, and its folder after that: it survives a power failure.

    Yields:
        A descriptor of the temporary file, open for writing, and its path.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    folder = target.parent
    make_folder(folder)
    sweep(folder)
    descriptor, temporary = _create(folder)
    try:
        yield descriptor, temporary
        if durable:
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)
    if durable:
        sync_folder(folder)


def is_stream(path: Path) -> bool:
    """Say whether a path names a device, a pipe or an open file, such as /dev/null: it cannot be replaced."""
    if path.is_absolute() and path.parts[1:2] in (("dev",), ("proc",)) and path.parts[1:3] != ("dev", "shm"):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write all bytes to an open file."""
    rest = memoryview(content)
    while len(rest):
        rest = rest[os.write(descriptor, rest[:CHUNK]) :]


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there, and sync the new entries."""
    missing = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    with naming_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for made in reversed(missing):
            sync_folder(made.parent)


def remove(path: Path) -> None:
    """Delete a file, if it is there, and sync its folder: it stays deleted after a power failure."""
    if path.is_symlink() or path.exists():
        with naming_disk_errors(path):
            os.unlink(path)
            sync_folder(path.parent)


@contextmanager
def synced_once(folder: Path) -> Iterator[None]:
    """Sync the entries of a folder once, when the block ends, and not after each file that is written in it.

    A file that says that the others are there is written after the block.
    """
    before = _synced_later.set(folder)
    try:
        yield
    finally:
        _synced_later.reset(before)
    if folder.is_dir():
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder; some file systems cannot, and need not."""
    if folder == _synced_later.get():
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder in which one may write but not look
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporary files of a folder whose writers are dead."""
    with os.scandir(folder) as entries:
        left = [entry.path for entry in entries if is_temporary(entry.name)]
    for path in left:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its writer holds this as long as it lives
                os.unlink(path)
            finally:
                os.close(descriptor)


def sweep_lock(folder: Path) -> None:
    """Remove the lock of a folder if the process that took it is dead; nobody may come to take it again."""
    if (folder / LOCK).exists():
        with suppress(InputError), locked(folder):
            pass


def is_temporary(name: str) -> bool:
    """Say whether a file has the name of a temporary file."""
    return name.startswith(PREFIX) and name.endswith(SUFFIX)


def is_own(name: str) -> bool:
    """Say whether a file has the name of a temporary file or of a lock; neither is part of what a folder holds."""
    return name.startswith(LOCK) or is_temporary(name)


@contextmanager
def locked(
    folder: Path, *, name: str = LOCK, shared: bool = False, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Keep other processes from writing a folder. The lock ends with the block, or with the process.

    Locks are those of `flock`. They hold between machines where the file system passes them on: NFS from version 4, and
    Lustre or GPFS where they are mounted with locks. Where a file system has none, nothing is locked.

    Args:
        folder: The folder; made if missing.
        name: Name of the lock; a folder can have several.
        shared: Let other processes that share the lock in too, and keep out only those that do not.
        on_wait: Wait until the lock is free; told again and again who holds it. None: raise.

    Raises:
        InputError: Another process writes there; the message names it.
    """
    if folder.exists() and not folder.is_dir():
        yield  # nothing can be written there; whoever tries says so
        return
    is_new = not folder.exists()
    descriptor = _take(folder / name, shared, on_wait)
    if descriptor is None:
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            if shared:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # only the last one removes the file
            os.unlink(folder / name)  # while it is held: whoever opened this file finds it gone and opens a new one
            if is_new:
                folder.rmdir()  # unless something was written there
        os.close(descriptor)


@contextmanager
def naming_disk_errors(path: Path) -> Iterator[None]:
    """Name the file in errors of the disk. A full disk is a `DiskFullError`: any other file would fail as well."""
    try:
        yield
    except OSError as error:
        if error.errno in _REASON_AND_CURE and not isinstance(error, DiskFullError):
            reason, cure = _REASON_AND_CURE[error.errno]
            raise DiskFullError(
                f"{reason}: {path} cannot be written; an earlier file of this name is unchanged. {cure}, and run the "
                "same command again."
            ) from None
        own = error.filename is None or is_temporary(Path(os.fsdecode(error.filename)).name)
        if own and error.errno is not None:
            error.filename = str(path)  # the name that the user knows
        raise


def _create(folder: Path) -> tuple[int, Path]:
    """Create a temporary file and lock it."""
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with suppress(OSError):  # without locks, leftovers are not swept
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)  # swept by another process before it was locked


def _take(path: Path, shared: bool, on_wait: Callable[[str], None] | None) -> int | None:
    """Take a lock; return the descriptor that holds it. A folder that cannot be written needs none."""
    tries = 10 if shared else 1  # the last one that shared it holds it alone while it removes the file
    with naming_disk_errors(path):
        make_folder(path.parent)
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except OSError as error:
                if error.errno in (errno.EROFS, errno.EACCES):
                    return None  # no process can write there
                raise
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                holder, tries = _holder(descriptor), tries - 1
                os.close(descriptor)
                if on_wait is None and not tries:
                    raise InputError(
                        f"{path.parent} is being written by {holder}. Wait until it ends and run the same command "
                        "again, or choose another folder."
                    ) from None
                if on_wait is not None:
                    on_wait(holder)
                time.sleep(WAIT_SECONDS)
                continue
            except OSError:
                pass  # a file system without locks
            if os.fstat(descriptor).st_nlink:
                break
            os.close(descriptor)  # released and removed in the meantime
    with suppress(OSError):  # the name is only for those who find the folder locked
        os.ftruncate(descriptor, 0)
        write_all(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor


def _holder(descriptor: int) -> str:
    """Return who holds a lock; a process that has just taken it may not have written its name yet."""
    for _ in range(20):
        if name := os.pread(descriptor, 200, 0).decode("utf-8", "replace"):
            return name
        time.sleep(0.05)
    return "another process"
