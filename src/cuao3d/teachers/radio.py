"""RADIO: one network that learned to stand for several teachers at once (Ranzinger et al., CVPR 2024)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cuao3d.download import CARDS
from cuao3d.errors import InputError
from cuao3d.pretrained.huggingface import Preprocessing, read_settings
from cuao3d.teachers.options import LongSide
from cuao3d.teachers.patches import PatchTeacher

SIZES = {
    "vit_base_patch16_224": (768, 12, 12, 3072),
    "vit_large_patch16_224": (1024, 24, 16, 4096),
    "vit_huge_patch16_224": (1280, 32, 16, 5120),
    "vit_so400m_patch16_224": (1152, 27, 16, 4304),
}
"""Channels, blocks, heads and channels of the perceptron, by the names that RADIO's training gives its networks."""

AS_THEY_ARE = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
"""RADIO normalises colours itself, by statistics among its weights."""


class RADIO(PatchTeacher):
    """RADIO's spatial features: tokens of the last block, which has no norm after it.

    C-RADIOv4 learned from SigLIP 2, DINOv3 and SAM 3. Two layouts of a folder open, both with the architecture that
    transformers has built in: one whose `config.json` has `"model_type": "radio"`, and the published one without a
    type, which asks for code of its own to be run (`auto_map`). That code is never run; what it would read from the
    arguments of training (`args`) is read here.

    It has no `text`. The adaptors that lead from RADIO to the space of a teacher's words (for C-RADIOv4 that of
    SigLIP 2) are not part of the architecture in transformers, and the published folders, as far as is known, hold the
    backbone alone; so these features have no text encoder. Adaptors in a folder are ignored.

    Models called C-RADIO may be used commercially under the licence below; those called RADIO are not for commercial
    use, under a licence of their own.
    """

    licence = CARDS["radio"].licence
    classes = {"radio": "RadioModel", "RADIOModel": "RadioModel"}
    unused = ("radio_model.adaptors.", "summary_idxs")

    def __init__(self, weights: Path | None = None, *, name: str = "radio", long_side: LongSide | None = None) -> None:
        """Load the network.

        Args:
            weights: Folder of the model; if not given, that of the weights called `name`.
            name: Name of the teacher: "radio" is C-RADIOv4-H.
            long_side: Longer side, pixels, to which images are scaled; their own if not given.

        Raises:
            NotInstalledError: transformers is not installed, or has no RADIO yet.
            NotFoundError: The weights are not there.
            InputError: They are not those of a RADIO that transformers can open.
        """
        super().__init__(weights, name=name, long_side=long_side, preprocessing=AS_THEY_ARE)

    def _options(self) -> Mapping[str, Any]:
        settings = read_settings(self.folder)
        if "model_type" in settings or settings.get("architectures") != ["RADIOModel"] or "args" not in settings:
            return {}
        try:
            return _read_arguments(settings["args"])
        except (KeyError, TypeError, InputError) as error:
            raise InputError(
                f"{self.folder / 'config.json'} describes no RADIO that can be read, in args: {error}."
            ) from error

    def _tokens(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        tokens: Tensor = self.network(images).features
        return tokens


def _read_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the arguments of RADIO's training into settings of the class of transformers.

    Each teacher that it learned from has a class token of its own, if `cls_token_per_teacher` says so. Registers are
    counted, or fill up the class tokens to a multiple.
    """
    if (model := arguments["model"]) not in SIZES:
        raise InputError(f"unknown model {model!r}, expected {' or '.join(SIZES)}")
    width, blocks, heads, hidden = SIZES[model]
    teachers = {teacher["name"] for teacher in arguments["teachers"]}
    tokens = len(teachers) if arguments["cls_token_per_teacher"] else 1
    multiple = arguments.get("register_multiple")
    return {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "mlp_ratio": hidden / width,
        "max_img_size": arguments["cpe_max_size"],
        "num_cls_tokens": tokens,
        "num_registers": arguments.get("cpe_num_registers") or (multiple - tokens % multiple if multiple else 0),
    }
