"""Prompts: the texts by which classes are asked for."""

from collections.abc import Iterator, Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import InputError
from cuao3d.labels import LabelSet
from cuao3d.text.encoder import TextEncoder

PROMPT = "a {name} in a scene"
"""How label sets ask for a class, unless they word its prompt themselves."""

TEMPLATES = (
    PROMPT,
    "a {name} in a room",
    "a photo of a {name}",
    "a photo of a {name} in a room",
    "a close-up photo of a {name}",
    "a photo of part of a {name}",
    "there is a {name} in this room",
)
"""An ensemble for rooms: ways to ask for one class, whose vectors are averaged."""


def class_vectors(
    encoder: TextEncoder, label_set: LabelSet, templates: Sequence[str] | None = None
) -> Float[Tensor, "K C"]:
    """Return the unit vector of each class of a label set.

    Args:
        encoder: Turns texts into unit vectors.
        label_set: The classes.
        templates: Texts with a place for `{name}`, such as `TEMPLATES`: a class is the normalised mean of their
            vectors. A class whose label set words its prompt itself ("other") keeps it. By default each class is
            its prompt.

    Raises:
        InputError: There is no template, or one has no place for the name.
    """
    if templates is None:
        return encoder(label_set.prompts)
    wrong = [template for template in templates if "{name}" not in template]
    if wrong or not templates:
        raise InputError(f"A template holds {{name}}, as in {PROMPT!r}; got {wrong or 'none at all'}.")
    texts = [
        template.replace("{name}", name) if prompt == PROMPT.replace("{name}", name) else prompt
        for name, prompt in zip(label_set.names, label_set.prompts, strict=True)
        for template in templates
    ]
    vectors = encoder(texts).reshape(len(label_set), len(templates), -1)
    return functional.normalize(vectors.mean(dim=1), dim=1)


def names_in(text: str) -> Iterator[str]:
    """List what a text may be asking for: itself, and what stands in the place of a template's name."""
    yield text
    for template in TEMPLATES:
        before, after = template.split("{name}")
        if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
            yield text[len(before) : len(text) - len(after)]
