"""The FUSE backend: a process per mount that serves a union to the kernel.

:mod:`start` starts the process, :mod:`daemon` is its program, :mod:`serve` its life. Requests come from ``/dev/fuse``
(:mod:`connection`, in the words of :mod:`protocol`), or by way of pyfuse3 for who asks for that; only the modules named
after pyfuse3 import it.
"""
