"""Posed RGB-D in, a 3D model that understands any words out."""

from importlib.metadata import version

__version__ = version("cuao3d")
