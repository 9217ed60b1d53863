"""`cuao3d weights`: list, fetch and verify published weights."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from cuao3d.cards import SEGMENTER
from cuao3d.console import tell
from cuao3d.errors import InputError, NotFoundError


def weights(
    action: Positional[Literal["list", "fetch", "add", "verify"]],
    names: Positional[tuple[str, ...]] = (),
) -> int:
    """List the published weights of teachers, download some, take files, or check that the files here are unchanged.

    Args:
        action: "list" shows source, licence, size and place; "fetch" downloads; "add" copies files that you have (NAME
            FILE...) to where they are found; "verify" compares each file with its published SHA-256, or with that
            recorded when it was fetched.
        names: Names of weights, or segmenter:OWNER/NAME for a semantic segmenter of the Hugging Face hub; "list" shows
            all and "verify" checks all that are here unless given.
    """
    from cuao3d import download
    from cuao3d.names import match_name

    if action == "add":
        return _add(names)
    names = tuple(match_name(name, download.CARDS) for name in names)
    if unknown := sorted({name for name in names if not name.startswith(SEGMENTER)} - set(download.CARDS)):
        raise InputError(f"Unknown weights {', '.join(unknown)}; choose from {', '.join(download.CARDS)}.")
    if action == "list":
        _list(names or tuple(download.CARDS))
    elif action == "fetch":
        if not names:
            raise InputError(f"Say which weights: cuao3d weights fetch NAME; choose from {', '.join(download.CARDS)}.")
        for name in names:
            tell(_about(name))
            tell(f"{name}: {download.fetch(name)}")
    else:
        here = names or tuple(name for name in download.CARDS if download.is_here(name) or download.lost_files(name))
        for name in here:
            for checked in download.verify(name):
                tell(f"{name}: {checked.file} {checked.sha256} ({checked.basis})")
        if not here:
            tell("No published weights are on this machine. See: cuao3d weights list")
    return 0


def _add(arguments: tuple[str, ...]) -> int:
    """Copy files, named after their weights, to where they are found."""
    from cuao3d import download

    name, *files = arguments or ("",)
    if not files:
        raise InputError("Say which weights, and the files: cuao3d weights add NAME FILE...")
    tell(f"{name}: {download.add(name, [Path(file) for file in files])}")
    return 0


def _list(names: tuple[str, ...]) -> None:
    """Print what is known of weights, and where they lie."""
    from cuao3d import download

    for name in names:
        try:
            place = f"here: {download.find(name)}"
        except NotFoundError:
            lost = sorted(download.lost_files(name))
            place = f"incomplete: {', '.join(lost)} missing" if lost else "not on this machine"
        card = download.card_of(name)
        tell(_about(name))
        tell(f"    source: {', '.join((card.address or card.repository, *card.mirrors))}")
        tell(f"    {place}")


def _about(name: str) -> str:
    """Return size and licence of weights in one line."""
    from cuao3d import download

    card = download.card_of(name)
    size = download.size_in_words(card)
    return f"{name}: {size}. Licence: {card.licence}. For a student distilled from it: {card.distilled}."
