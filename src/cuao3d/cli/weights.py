"""`cuao3d weights`: list, fetch and verify published weights."""

from typing import Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from cuao3d.errors import InputError


def weights(
    action: Positional[Literal["list", "fetch", "verify"]],
    names: Positional[tuple[str, ...]] = (),
) -> int:
    """List the published weights of teachers, download some, or check what lies here against its SHA-256.

    Args:
        action: "list" tells source, licence, size and place of each; "fetch" and "verify" take names.
        names: Which weights; to verify: all that are here unless given.
    """
    from cuao3d import download

    if unknown := sorted(set(names) - set(download.CARDS)):
        raise InputError(f"Unknown weights {', '.join(unknown)}; choose from {', '.join(download.CARDS)}.")
    if action == "list":
        _print_weights(names or tuple(download.CARDS))
    elif action == "fetch":
        if not names:
            raise InputError("Say which weights: cuao3d weights fetch lseg dinov2 stable-diffusion")
        for name in names:
            about = download.CARDS[name]
            print(f"{name}: {download.size_in_words(about)}, licence {about.licence}: {about.distilled}.")
            print(f"{name}: {download.fetch(name)}")
    else:
        here = names or tuple(name for name in download.CARDS if download.is_here(name))
        for name in here:
            for file, sha256 in download.verify(name).items():
                known = "as published" if file in download.CARDS[name].sha256 else "nothing to compare with is known"
                print(f"{name}: {file} {sha256} ({known})")
        if not here:
            print("No published weights are on this machine. See: cuao3d weights list")
    return 0


def _print_weights(names: tuple[str, ...]) -> None:
    """Print what is known of weights."""
    from cuao3d import download

    table = Table("weights", "size", "licence", "for a student distilled from it", box=None)
    table.add_column("source, mirrors", overflow="fold")
    table.add_column("here", overflow="fold")
    for name in names:
        about = download.CARDS[name]
        table.add_row(
            name,
            download.size_in_words(about),
            about.licence,
            about.distilled,
            ", ".join((about.repository, *about.mirrors)),
            str(download.find(name)) if download.is_here(name) else "-",
        )
    Console().print(table)
