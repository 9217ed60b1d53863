"""`cuao3d query`: find words in a scene."""

from pathlib import Path

from tyro.conf import Positional

from cuao3d.errors import InputError


def query(
    store: Positional[Path],
    words: Positional[tuple[str, ...]],
    *,
    out: Path,
    run: Path | None = None,
    scene: str | None = None,
    text: str | None = None,
) -> int:
    """Find words in a scene: a coloured cloud (.ply), the places (.json) or a page to look at (.html).

    Args:
        store: Folder of the store.
        words: What to look for, each in quotes.
        out: File to write; its ending says what.
        run: Folder of a finished run; the lifted features answer unless given.
        scene: Name of the scene; where there are several, the one that answers best.
        text: Text encoder that reads the words; the store's unless given.
    """
    from cuao3d import pipeline
    from cuao3d.store import Store

    if not words:
        raise InputError('Say what to look for: cuao3d query STORE "somewhere to sit" --out heat.html')
    found = pipeline.answer(Store.open(store), words, out, run=run, scene=scene, text=text)
    for line in found:
        print(line)
    return 0
