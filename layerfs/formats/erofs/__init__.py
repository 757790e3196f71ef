"""The EROFS images that are layerfs's only on-disk tree format: names and attributes, and where the bytes lie."""
