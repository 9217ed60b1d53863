"""`cuao3d search`: put one question to many scans."""

from pathlib import Path

from tyro.conf import Positional

from cuao3d.console import note, tell
from cuao3d.schema import Count


def search(index: Positional[Path], question: Positional[str], *, top: Count = 10, out: Path | None = None) -> int:
    """Put one question to many scans: the parts that answer it best, printed or as .html, .json or .txt.

    Args:
        index: Folder of the index; see `cuao3d index`.
        question: What to look for, in quotes. Colour words, as in "red chair", are answered by the parts' colours.
        top: Number of results.
        out: File to write; its ending says what.
    """
    from cuao3d.answers import UNKNOWN_WORDS
    from cuao3d.errors import InputError
    from cuao3d.files import check_output
    from cuao3d.index import Index
    from cuao3d.index.search import check_ending, in_lines, write_found
    from cuao3d.index.search import search as find
    from cuao3d.progress import waiting
    from cuao3d.text import load_text_encoder

    if not question.strip():
        raise InputError('The question is blank; ask for something, such as "red chair".')
    check_output(out)
    if out is not None:
        check_ending(out)
    opened = Index.open(index)
    with waiting("opening the text encoder"):
        encoder = load_text_encoder(opened.about["text"])
    found = find(opened, encoder, question, top=top)
    if not found.words_known:
        note(f"{found.words!r}: {UNKNOWN_WORDS}.", head="doubt")
    for line in in_lines(found):
        tell(line)
    if out is not None:
        write_found(out, found, opened)
    return 0
