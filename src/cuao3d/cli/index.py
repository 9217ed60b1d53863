"""`cuao3d index`: make the scenes of stores searchable, or bring an index up to date."""

from pathlib import Path

from tyro.conf import Positional

from cuao3d.cli.shared import LEFT_OUT, check_device
from cuao3d.console import note, tell


def index(
    stores: Positional[tuple[Path, ...]],
    *,
    out: Path,
    run: Path | None = None,
    teacher: str | None = None,
    text: str | None = None,
    device: str = "cpu",
) -> int:
    """Make the scenes of stores searchable: new and changed scenes are added, and those that are gone are removed.

    Args:
        stores: Folders of stores.
        out: Folder of the index; the scenes of other stores that it holds stay, unless the store is gone.
        run: Folder of a finished run, or a student's .safetensors; without it the lifted features are indexed.
        teacher: Whose features, where several teachers have a text encoder; the first unless given.
        text: Text encoder for the words; the teacher's unless given.
        device: Where the student runs, such as cuda.
    """
    from cuao3d.errors import InputError
    from cuao3d.index import index_stores
    from cuao3d.names import url_of
    from cuao3d.store import Store

    if not stores:
        raise InputError("Say which stores to index: cuao3d index STORE --out INDEX")
    check_device(device)
    opened = [Store.open(store) for store in dict.fromkeys(url_of(path) or path.resolve() for path in stores)]
    changes = index_stores(opened, out, run=run, teacher=teacher, text=text, device=device)
    tell(f"{out}: {changes.index.count_in_words()}; {len(changes.done)} indexed now, {len(changes.removed)} removed")
    for name, reason in changes.left_out.items():
        note(f"{name}: {reason}", head="left out")
    return LEFT_OUT if changes.left_out else 0
