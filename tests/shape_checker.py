"""The runtime type checker of the tests: beartype, to which a whole number is a float too, as to mypy (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
