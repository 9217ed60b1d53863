"""`cuao3d weights`: list, fetch and verify published weights."""

from typing import Literal

from tyro.conf import Positional

from cuao3d.errors import InputError, NotFoundError


def weights(
    action: Positional[Literal["list", "fetch", "verify"]],
    names: Positional[tuple[str, ...]] = (),
) -> int:
    """List the published weights of teachers, download some, or check that the files here are unchanged.

    Args:
        action: "list" shows source, licence, size and place; "fetch" downloads; "verify" compares each file with its
            published SHA-256, or with that recorded when it was fetched.
        names: Names of weights; "list" shows all and "verify" checks all that are here unless given.
    """
    from cuao3d import download
    from cuao3d.names import match_name

    names = tuple(match_name(name, download.CARDS) for name in names)
    if unknown := sorted(set(names) - set(download.CARDS)):
        raise InputError(f"Unknown weights {', '.join(unknown)}; choose from {', '.join(download.CARDS)}.")
    if action == "list":
        _list(names or tuple(download.CARDS))
    elif action == "fetch":
        if not names:
            raise InputError(f"Say which weights: cuao3d weights fetch NAME; choose from {', '.join(download.CARDS)}.")
        for name in names:
            print(_about(name), flush=True)
            print(f"{name}: {download.fetch(name)}")
    else:
        here = names or tuple(name for name in download.CARDS if download.is_here(name) or download.lost_files(name))
        for name in here:
            for checked in download.verify(name):
                print(f"{name}: {checked.file} {checked.sha256} ({checked.basis})")
        if not here:
            print("No published weights are on this machine. See: cuao3d weights list")
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
        card = download.CARDS[name]
        print(_about(name))
        print(f"    source: {', '.join((card.repository, *card.mirrors))}")
        print(f"    {place}")


def _about(name: str) -> str:
    """Return size and licence of weights in one line."""
    from cuao3d import download

    card = download.CARDS[name]
    size = download.size_in_words(card)
    return f"{name}: {size}. Licence: {card.licence}. For a student distilled from it: {card.distilled}."
