"""The verbs, one module each; :mod:`layerfs_cli.catalog` lists them, and imports one when it is used."""
