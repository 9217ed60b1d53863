"""Measure which words are said to be unknown to a text encoder (see `cuao3d.text.english`).

    python scripts/measure_words.py --text minilm-centred --names lvis_names.txt

English words are those of the label sets, and those of a file of names if one is given. The unknown ones are drawn
(keys struck at random, invented syllables) or foreign. The levels were fitted on the rows marked so: most unknown words
are found while at most 2 % of the English ones of any row are called unknown. The other rows were not looked at for it.
"""

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path

import tyro

from cuao3d.console import note, tell_table
from cuao3d.labels import LABEL_SETS, label_set
from cuao3d.text import english, load_text_encoder

FITTED = {
    "German": "Stuhl|Tisch|Fenster|Kühlschrank|Bücherregal|Waschbecken|ein Platz zum Sitzen|wo kann ich sitzen|Teppich|"
    "Schreibtisch|Vorhang|Kissen|etwas zum Schreiben|wo ist die Tür|Mülleimer|Badewanne|Schrank|Spiegel|Bett|Herd",
    "Spanish": "silla|ventana|nevera|estantería|un lugar para sentarse|dónde puedo sentarme|alfombra|escritorio|"
    "cortina|almohada|algo para escribir|dónde está la puerta|basurero|bañera|espejo|cama|mesa|lavabo|pizarra",
    "Polish": "krzesło|okno|lodówka|regał|miejsce do siedzenia|gdzie mogę usiąść|dywan|biurko|zasłona|poduszka|"
    "coś do pisania|gdzie są drzwi|kosz na śmieci|wanna|szafa|lustro|łóżko|stół|zlew|tablica",
}
OTHERS = {
    "French": "chaise|fenêtre|réfrigérateur|étagère|un endroit pour s'asseoir|où puis-je m'asseoir|tapis|rideau|"
    "oreiller|quelque chose pour écrire|où est la porte|poubelle|baignoire|armoire|miroir|lit|évier|tableau blanc",
    "Italian": "sedia|finestra|frigorifero|libreria|un posto dove sedersi|dove posso sedermi|tappeto|scrivania|tenda|"
    "cuscino|qualcosa per scrivere|dov'è la porta|cestino|vasca da bagno|armadio|specchio|letto|tavolo|lavandino",
    "Turkish": "sandalye|pencere|buzdolabı|kitaplık|oturacak bir yer|nereye oturabilirim|halı|masa|perde|yastık|"
    "kapı nerede|çöp kutusu|küvet|dolap|ayna|yatak|lavabo",
    "Finnish": "tuoli|ikkuna|jääkaappi|kirjahylly|paikka istua|missä voin istua|matto|työpöytä|verho|tyyny|"
    "missä ovi on|roskakori|kylpyamme|kaappi|peili|sänky|pöytä",
    "other scripts": "椅子|桌子|窗户|冰箱|我在哪里可以坐|つくえ|まど|座る場所|どこに座れますか|стул|стол|окно|"
    "холодильник|где можно сесть|كرسي|طاولة|نافذة|مكان للجلوس|कुर्सी|मेज़|बैठने की जगह|καρέκλα|τραπέζι|παράθυρο",
    "signs": "🪑|😀|🛋️|🚪🪟|🔥🔥|???|...|12345|@#$%",
}
ENGLISH = ("synonyms", "given names")
"""How the rows of English words that levels are fitted on begin."""

MOST_WRONG = 0.02
"""Share of the words of such a row that may be called unknown."""

KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
STARTS, MIDDLES, ENDS = "b br cl d f g gr h j k m n p qu r s sk tr v w z", "a e i o u oo ai", "ck ff l nt p rk sh t zz"


def main(text: str = "minilm-centred", names: Path | None = None, fit: bool = False) -> None:
    """Count, and print a table.

    Args:
        text: Text encoder.
        names: Text file with an English name a line.
        fit: Try levels on the rows that are fitted on, and print the best.
    """
    encoder = load_text_encoder(text)
    made, more = label_set("made100"), names.read_text(encoding="utf-8").splitlines() if names else []
    plain = [name.split("_(")[0].replace("_", " ") for name in more]
    drawn = random.Random(0)
    fitted = {
        "synonyms (fitted)": _flat(made.synonyms),
        "given names, even (fitted)": plain[::2],
        "keys (fitted)": [_several(drawn, _keys) for _ in range(100)],
        "syllables (fitted)": [_several(drawn, _syllables) for _ in range(100)],
        **{f"{language} (fitted)": listed.split("|") for language, listed in FITTED.items()},
    }
    others = {
        "questions": _flat(made.questions),
        "class names": sorted({name for one in LABEL_SETS for name in label_set(one).names}),
        "given names, odd": plain[1::2],
        "keys": [_several(drawn, _keys) for _ in range(100)],
        "syllables": [_several(drawn, _syllables) for _ in range(100)],
        **{language: listed.split("|") for language, listed in OTHERS.items()},
    }
    if fit:
        levels = product((2.8, 3.0, 3.2, 3.4, 3.6), (0.02, 0.05, 0.1, 0.2))
        note("letters and quantile: {} {}".format(*max(levels, key=lambda pair: _found(encoder, fitted, *pair))))
        return
    rows = [
        (kind, str(len(texts)), f"{100 * _unknown(encoder, texts):.1f}")
        for kind, texts in (fitted | others).items()
        if texts
    ]
    tell_table(("words", "number", "unknown, %"), rows)


def _found(encoder: Callable[..., object], kinds: dict[str, list[str]], letters: float, lonely: float) -> float:
    """Return the mean share of unknown words that a pair of levels finds; -1 if it errs too often on English ones."""
    english.LETTERS, english.LONELY = letters, lonely
    english._names.cache_clear()
    shares = {kind: _unknown(encoder, texts) for kind, texts in kinds.items() if texts}
    wrong = [share for kind, share in shares.items() if kind.startswith(ENGLISH)]
    right = [share for kind, share in shares.items() if not kind.startswith(ENGLISH)]
    return sum(right) / len(right) if max(wrong) <= MOST_WRONG else -1


def _unknown(encoder: Callable[..., object], texts: list[str]) -> float:
    """Return the share of texts whose words are said to be unknown."""
    known = english.knows(encoder, texts, encoder(texts))  # type: ignore[arg-type]
    return 1 - sum(known) / len(known)


def _flat(lists: tuple[tuple[str, ...], ...]) -> list[str]:
    return sorted({text for one in lists for text in one})


def _several(drawn: random.Random, word: Callable[[random.Random], str]) -> str:
    return " ".join(word(drawn) for _ in range(drawn.randint(1, 3)))


def _keys(drawn: random.Random) -> str:
    return "".join(drawn.choice(drawn.choice(KEYS)) for _ in range(drawn.randint(4, 8)))


def _syllables(drawn: random.Random) -> str:
    ends = [*ENDS.split(), "", ""]
    return "".join(
        drawn.choice(STARTS.split()) + drawn.choice(MIDDLES.split()) + drawn.choice(ends)
        for _ in range(drawn.randint(2, 3))
    )


if __name__ == "__main__":
    tyro.cli(main)
