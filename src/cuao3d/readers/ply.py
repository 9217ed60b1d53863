"""The name that `formats.ply` had before; scripts of users import it."""

from cuao3d.formats.ply import read_ply as read_ply
from cuao3d.formats.ply import write_ply as write_ply
