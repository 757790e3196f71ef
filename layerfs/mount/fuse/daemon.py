"""The program that :mod:`layerfs.mount.fuse.start` runs: ``python -m layerfs.mount.fuse.daemon IN OUT [LOG]``.

It reads a specification from descriptor IN, leaves its parent, and writes one line of JSON to descriptor OUT: its pid
when the mount works, or why there is none. LOG takes what it has to say later.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys

from layerfs.errors import LayerfsError
from layerfs.linux.standard_descriptors import fill_standard_descriptors

__all__ = ["detach", "main"]


def main(arguments: list[str]) -> int:
    """Serve the mount; return an exit code."""
    fill_standard_descriptors()
    source, answer = int(arguments[0]), int(arguments[1])
    if os.fork():
        # Whoever waits for this process has waited long enough: the mount is not its child.
        os._exit(0)
    os.setsid()
    with os.fdopen(source, "rb") as file:
        text = file.read()
    answered = False

    def say(**fields: object) -> bool:
        """Answer, once; return whether anybody heard it."""
        nonlocal answered
        if answered:
            return True
        answered = True
        try:
            os.write(answer, json.dumps(fields).encode() + b"\n")
        except BrokenPipeError:
            return False
        finally:
            os.close(answer)
        return True

    def fail(message: str, number: int | None) -> int:
        """Say that there is no mount, or will be none any more; return the exit code."""
        if answered:
            logging.getLogger(__name__).error("the mount is dead: %s", message)
        else:
            say(error=message, errno=number)
        return 1

    def ready() -> None:
        detach(arguments[2] if len(arguments) > 2 else None)
        if not say(pid=os.getpid()):
            raise BrokenPipeError(errno.EPIPE, "whoever asked for the mount has given it up")

    try:
        from layerfs.mount.fuse.serve import serve  # noqa: PLC0415 - what is missing is to be reported
        from layerfs.mount.fuse.specification import FuseSpecification  # noqa: PLC0415 - as above

        serve(FuseSpecification.from_json(text), ready)
    except OSError as error:
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return fail(f"{name}{error.strerror or error}", error.errno)
    except (LayerfsError, ImportError) as error:
        return fail(str(error), None)
    except BaseException as error:
        if not say(error=f"{type(error).__name__}: {error}", errno=None):
            return 1  # whoever wanted the mount has given it up, with all that it needs
        raise
    return 0


def detach(log: str | None) -> None:
    """Let go of the working directory and the streams of whoever started this process, none of which is closed.

    Args:
        log: file that takes what would go to standard error, made if it is missing; None drops it.
    """
    os.chdir("/")
    with contextlib.ExitStack() as stack:
        null = target = os.open(os.devnull, os.O_RDWR)
        stack.callback(os.close, null)
        if log is not None:
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, target)
        for number, fd in ((0, null), (1, target), (2, target)):
            os.dup2(fd, number)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(name)s: %(levelname)s: %(message)s", level=logging.WARNING)
    sys.exit(main(sys.argv[1:]))
