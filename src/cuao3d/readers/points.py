"""The name that `formats.points` had before; scripts of users import it."""

from cuao3d.formats.points import read_points as read_points
