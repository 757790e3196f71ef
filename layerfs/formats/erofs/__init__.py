"""The metadata-only EROFS images that are layerfs's only on-disk tree format."""
