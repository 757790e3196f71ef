"""The FUSE backend: a process per mount that serves a union to the kernel.

Only :mod:`operations`, :mod:`loop` and :mod:`serve` import pyfuse3; :mod:`start` and :mod:`specification` do not, so
the rest of layerfs works where pyfuse3 is not installed.
"""
