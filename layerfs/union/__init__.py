"""The merged view of a read-only tree and an upper directory, as a virtual file system: no FUSE, no event loop.

Names are bytes, inodes are numbers, and every error is an OSError with the errno that a program is to see.
"""
