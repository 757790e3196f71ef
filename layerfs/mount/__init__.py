"""Backends that turn an image and an upper directory into a mount, the choice between them, and their records."""
