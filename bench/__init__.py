"""Measurements of layerfs beside its peers; never part of the wheel. ``python -m bench`` is the entry."""
