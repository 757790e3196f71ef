"""Container images in, mounted file systems out. Programs start at :class:`layerfs.api.Store`."""

__all__ = ["__version__"]

__version__ = "0.1.0.dev0"
