"""The command line of layerfs: a caller of :mod:`layerfs.api` that reads the environment and prints."""
