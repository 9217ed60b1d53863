"""Write the tables of docs/teachers.md from the package's cards: python scripts/write_teachers.py."""

from pathlib import Path

import tyro

from cuao3d.download import CARDS, size_in_words
from cuao3d.files import read_json
from cuao3d.teachers import TEACHERS, known_card
from cuao3d.teachers.mini import WEIGHTS
from cuao3d.teachers.spec import known_options


def main(page: Path = Path("docs/teachers.md")) -> None:
    """Put the tables between the page's markers."""
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(page: str) -> str:
    """Return the text of the page with the tables between its markers."""
    for name, table in (("teachers", teachers_table()), ("small", small_table()), ("weights", weights_table())):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, _, rest = page.partition(begin)
        page = before + begin + table + end + rest.partition(end)[2]
    return page


def teachers_table() -> str:
    """Return the teachers as a table."""
    lines = ["| teacher | channels | text encoder | loss | options |", "|---|---|---|---|---|"]
    for name in TEACHERS:
        card = known_card(name)
        assert card is not None
        text, options = (f"`{card.text}`" if card.text else ""), ", ".join(f"`{key}`" for key in known_options(name))
        lines.append(f"| `{name}` | {card.num_channels} | {text} | {card.loss} | {options} |")
    return "\n".join(lines) + "\n"


def small_table() -> str:
    """Return how the small teachers were trained as a table."""
    lines = ["| teacher | trained on | commands | minutes | parameters |", "|---|---|---|---|---|"]
    for path in sorted(WEIGHTS.glob("*.json")):
        card = read_json(path)
        commands = "<br>".join(f"`{command}`" for command in card["commands"])
        cells = (f"{card['num_views']} views", commands, f"{card['seconds'] / 60:.0f}", f"{card['num_parameters']:,}")
        lines.append(f"| `{card['teacher']}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def weights_table() -> str:
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
