"""Write the table of docs/teachers.md from what the package knows: python scripts/write_teachers.py."""

from pathlib import Path

import tyro

from cuao3d.download import CARDS, size_in_words

BEGIN, END = "<!-- weights -->\n", "<!-- end of weights -->\n"


def main(page: Path = Path("docs/teachers.md")) -> None:
    """Put the table between the page's markers."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + table() + END + after, encoding="utf-8")


def table() -> str:
    """Return the named weights as a table."""
    lines = [
        "| name | source, then mirrors | size | licence | for a student distilled from it |",
        "|---|---|---|---|---|",
    ]
    for name, weights in CARDS.items():
        source = weights.repository if weights.on_page else f"`{weights.repository}`"
        sources = ", ".join([source, *(f"`{mirror}`" for mirror in weights.mirrors)])
        lines.append(f"| `{name}` | {sources} | {size_in_words(weights)} | {weights.licence} | {weights.distilled} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(main)
