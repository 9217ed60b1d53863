"""`cuao3d query`: find words in a scene."""

from pathlib import Path

from tyro.conf import Positional

from cuao3d.cli.shared import check_device
from cuao3d.errors import InputError


def query(
    store: Positional[Path],
    words: Positional[tuple[str, ...]],
    *,
    out: Path,
    run: Path | None = None,
    scene: str | None = None,
    teacher: str | None = None,
    text: str | None = None,
    device: str = "cpu",
) -> int:
    """Find words in a scene: a coloured cloud (.ply), the places (.json) or a page to look at (.html).

    Args:
        store: Folder of the store.
        words: What to look for, each in quotes.
        out: File to write; its ending says what.
        run: Folder of a finished run, or a student's .safetensors; without it the lifted features answer.
        scene: Name of the scene; where there are several, the one that answers best.
        teacher: Which teacher answers, where several have a text encoder; the first unless given.
        text: Text encoder for the words, such as table:FILE for vectors of your own; the teacher's unless given.
        device: Where the student runs, such as cuda.
    """
    from cuao3d import pipeline
    from cuao3d.predictor import Predictor
    from cuao3d.progress import waiting
    from cuao3d.store import Store

    if not words:
        raise InputError('Say what to look for: cuao3d query STORE "somewhere to sit" --out heat.html')
    check_device(device)
    opened = Store.open(store)
    with waiting("opening the predictor"):
        predictor = Predictor.open(opened, run=run, teacher=teacher, text=text, device=device)
    found = pipeline.answer(opened, predictor, words, out, scene=scene)
    print(predictor.about)
    for line in found:
        print(line)
    return 0
