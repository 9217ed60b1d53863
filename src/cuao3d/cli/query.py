"""`cuao3d query`: find words in a scene."""

from pathlib import Path

from tyro.conf import Positional

from cuao3d.cli.shared import check_workers, note_missing
from cuao3d.console import tell
from cuao3d.errors import InputError, NotFoundError
from cuao3d.schema import Count, Fraction


def query(
    store: Positional[Path],
    queries: Positional[tuple[str, ...]],
    *,
    out: Path,
    words: Path | None = None,
    run: Path | None = None,
    scene: str | None = None,
    abstain: Fraction | None = None,
    teacher: str | None = None,
    text: str | None = None,
    workers: Count = 1,
    device: str = "cpu",
    mesh: Path | None = None,
) -> int:
    """Find words in a scene: a page to look at (.html), places (.json), or files for other tools (.ply, .glb, ...).

    Args:
        store: Folder of the store.
        queries: What to look for, each in quotes.
        out: File to write; its ending says what: .html, .json (places), .ply, .glb, .las (clouds with all values),
            .labels.json (the class of each point), .npz (features).
        words: Also look for the lines of this text file; empty lines and lines that begin with # are skipped.
        run: Folder of a finished run, or a student's .safetensors; without it the lifted features answer.
        scene: Name of the scene; where there are several, the one that answers best.
        abstain: Leave out points whose class is unsure, so that at most this share of the others is wrong: 0.05. It
            takes a confidence that was fitted: cuao3d store calibrate.
        teacher: Which teacher answers, where several have a text encoder; the first unless given.
        text: Text encoder for the words, such as table:FILE for vectors of your own; the teacher's unless given.
        workers: Processes that share the scenes and the cores.
        device: Where the student runs, such as cuda.
        mesh: A triangle mesh (.ply) in the capture's coordinates: write its vertices, each with the values of the
            sample that is nearest to it.
    """
    from cuao3d.exports import ask_store, writer_of
    from cuao3d.files import check_output
    from cuao3d.predictor import Predictor
    from cuao3d.progress import waiting
    from cuao3d.store import Store

    queries = tuple(dict.fromkeys([*queries, *(_read_lines(words) if words else [])]))
    if not queries:
        raise InputError('Say what to look for: cuao3d query STORE "somewhere to sit" --out heat.html, or --words FILE')
    check_workers(workers, device)
    check_output(out)
    writer_of(out, mesh)
    opened = Store.open(store)
    with waiting("opening the predictor"):
        predictor = Predictor.open(opened, run=run, teacher=teacher, text=text, device=device)
    found = ask_store(opened, predictor, queries, out, scene=scene, abstain=abstain, mesh=mesh, num_workers=workers)
    tell(predictor.about)
    for line in found:
        tell(line)
    return 0 if scene else note_missing(opened.missing())


def _read_lines(path: Path) -> list[str]:
    """Read a text file with one query a line."""
    if not path.is_file():
        raise NotFoundError(f"--words: there is no file {path}.")
    from cuao3d.formats.entries import as_text

    try:
        lines = [line.strip() for line in as_text(path, path.read_bytes()).splitlines()]
    except InputError as error:
        raise InputError(f"--words: {error}") from error
    if not (words := [line for line in lines if line and not line.startswith("#")]):
        raise InputError(f"--words: {path} holds no words; expected one query a line.")
    return words
