"""`cuao3d view`: look at a store in the browser, and ask it."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from cuao3d.cli.shared import check_device, note_missing
from cuao3d.console import tell
from cuao3d.errors import InputError
from cuao3d.schema import Range


def view(
    store: Positional[Path],
    *,
    run: tuple[Path, ...] = (),
    data: Path | None = None,
    scene: str | None = None,
    host: str = "127.0.0.1",
    port: Annotated[int, Range(0, 65535)] = 0,
    teacher: str | None = None,
    text: str | None = None,
    device: str = "cpu",
) -> int:
    """Look at a store in the browser: its scenes in 3D, coloured by what is asked, predicted or known.

    Args:
        store: Folder of the store.
        run: Folder of a finished run, or a student's .safetensors; several can be looked at side by side. The lifted
            features answer as well, where a teacher of the store has a text encoder.
        data: What the store was made from: photographs come from there if the store keeps none.
        scene: Name of the scene that is shown first; the first of the store unless given.
        host: Address to listen on; with any but 127.0.0.1, others can look and ask too: there is no password.
        port: Port to listen on; 0: a free one.
        teacher: Which teacher answers, where several have a text encoder; the first unless given.
        text: Text encoder for the words, such as table:FILE for vectors of your own; the teacher's unless given.
        device: Where the students run, such as cuda.
    """
    from cuao3d import half_rows
    from cuao3d.progress import waiting
    from cuao3d.readers import open_dataset
    from cuao3d.store import Store
    from cuao3d.view.models import open_models
    from cuao3d.view.server import Viewer, warn_of_host
    from cuao3d.view.session import Session

    check_device(device)
    opened = Store.open(store)
    names = opened.names()
    if not names:
        raise InputError(f"{store} holds no finished scene. Run `cuao3d fuse` again to finish it.")
    warn_of_host(host)
    with waiting("opening the predictors"):
        models = open_models(opened, run, teacher=teacher, text=text, device=device)
        half_rows.load()
    dataset = None if data is None else open_dataset(data)
    with waiting("starting the viewer"):
        viewer = Viewer(Session(opened, models, data=dataset), scene=scene or names[0], host=host, port=port)
    with viewer:
        note_missing(opened.missing())
        tell(f"Open {viewer.url} in a browser; Ctrl-C ends it.")
        viewer.wait()
    return 0
