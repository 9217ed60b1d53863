import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment, FileSystemLoader

import cuao3d.tables
from cuao3d.errors import InputError
from cuao3d.tables import Cell, Table, escape_latex, read_tables, show, to_csv, to_latex, write_tables

TABLE = Table(
    name="zero-shot",
    caption="Which points are named right, 50 % & more.",
    columns=("model", "mIoU", "points", "published"),
    rows=(
        ("ours_1, <b>", Cell(54.06, 0.84, 3), 1200, 53.4),
        ("[base]", Cell(math.nan, 1.0, 2), None, math.inf),
        ("one seed", Cell(41.25), 7, None),
    ),
    note="Mean and 95 % interval (runs).",
)


def test_a_table_as_csv():
    assert to_csv(TABLE) == (
        "model,mIoU,points,published\n"
        '"ours_1, <b>",54.1 ± 0.8 (3),1200,53.4\n'
        "[base],–,–,–\n"
        "one seed,41.2,7,–\n"
    )  # fmt: skip


def test_a_table_as_latex():
    assert (
        to_latex(TABLE)
        == r"""\begin{table}
\centering
\caption{Which points are named right, 50 \% \& more.}
\label{tab:zero-shot}
\begin{tabular}{lrrr}
\toprule
model & mIoU & points & published \\
\midrule
ours\_1, \textless{}b\textgreater{} & 54.1 $\pm$ 0.8 (3) & 1200 & 53.4 \\
{[}base] & -- & -- & -- \\
one seed & 41.2 & 7 & -- \\
\bottomrule
\end{tabular}
\par\smallskip\footnotesize Mean and 95 \% interval (runs).
\end{table}
"""
    )


def test_latex_prints_every_mark_as_it_stands():
    assert escape_latex(r"a&b %_#$ {x} ~^ \ <>") == (
        r"a\&b \%\_\#\$ \{x\} \textasciitilde{}\textasciicircum{} \textbackslash{} \textless{}\textgreater{}"
    )
    assert escape_latex("two\n lines") == "two lines"


def test_cells_show_what_they_know():
    assert show(Cell(0.93333, 0.0042, 5, digits=3)) == "0.933 ± 0.004 (5)"
    assert show(Cell(None)) == "–"
    assert show(Cell(2.0, math.nan, 1)) == "2.0"
    assert (show(3), show(3.0), show(math.nan), show("")) == ("3", "3.0", "–", "")


def test_tables_come_back_as_they_were_written(tmp_path):
    other = Table("other", "", ("a",), (("–",),))
    write_tables([TABLE, other], tmp_path / "out", results={"seed": 3})
    found, same = read_tables(tmp_path / "out")
    assert same == other
    assert found.texts == TABLE.texts
    assert found.rows[0] == TABLE.rows[0], "with full precision"
    assert (tmp_path / "out" / "zero-shot.csv").read_text("utf-8") == to_csv(TABLE)
    assert (tmp_path / "out" / "other.tex").read_text("utf-8") == to_latex(other)
    assert json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["seed"] == 3


VALUES = st.one_of(
    st.text(),
    st.none(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.builds(Cell, st.floats(0, 100), st.none() | st.floats(0, 9), st.integers(1, 9)),
)


@settings(max_examples=10)
@given(st.lists(st.tuples(VALUES, VALUES), max_size=3))
def test_any_table_comes_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("tables")
    table = Table("any", "What.", ("a", "b"), tuple(rows))
    write_tables([table], folder)
    assert read_tables(folder) == (table,)


def test_names_are_files_of_their_own(tmp_path):
    with pytest.raises(InputError, match="called 'zero-shot'"):
        write_tables([TABLE, TABLE], tmp_path)
    with pytest.raises(InputError, match="name of a table"):
        write_tables([Table("a/b", "", (), ())], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_page_shows_the_same_cells_and_no_markup_of_theirs():
    folder = Path(cuao3d.tables.__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True)
    draw = environment.from_string('{% from "tables.html.j2" import draw %}{{ draw(table) }}')
    page = draw.render(table=TABLE)
    assert '<tr><td>ours_1, &lt;b&gt;</td><td class="n">54.1 ± 0.8 (3)</td>' in page
    assert '<th>model</th><th class="n">mIoU</th>' in page
    assert page.count("–") == 4
