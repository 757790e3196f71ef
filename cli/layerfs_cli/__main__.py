"""``python -m layerfs_cli`` is the program ``layerfs``."""

from layerfs_cli.main import main

if __name__ == "__main__":
    main()
