"""What `etude serve` stands on: its address, its workers, and how it ends."""

import errno
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from etude.errors import EtudeError

out = Console(highlight=False, soft_wrap=True)


class AddressTaken(EtudeError):
    """The page's address is in use, or not ours to use."""

    exit_code = 3


def bound(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on the addresses of a host: had before anything is opened, started or said.

    Raises
    ------
    AddressTaken
        If they cannot be had.
    """
    made: list[socket.socket] = []
    missing = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # localhost names an IPv6 address where there is none, too
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((family, address) for family, *_, address in found):
            try:
                made.append(socket.create_server(address, family=family))
            except OSError as error:
                if error.errno not in missing or (not made and address == found[-1][-1]):
                    raise
    except OSError as error:
        for each in made:
            each.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressTaken(
                f"port {port} of {host} is taken, perhaps by another etude serve: stop that one or give another --port"
            ) from error
        raise AddressTaken(
            f"cannot serve on port {port} of {host} ({error}): give an address of this machine as --host and a free "
            "number above 1023 as --port"
        ) from error
    return made


@contextmanager
def until_told_to_end() -> Iterator[None]:
    """Ctrl-C ends what runs inside without a word, and SIGTERM does the same.

    uvicorn raises the signal that ended it once more, and SIGTERM's own handler would then end the process there.
    """
    in_main = threading.current_thread() is threading.main_thread()  # signals are for it alone
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def keep(
    children: list[subprocess.Popen[bytes]], command: list[str], environment: dict[str, str], stop: threading.Event
) -> None:
    """Put another worker in the place of one that died; sooner or later, should it die at once every time."""
    pause = 1.0
    while not stop.wait(pause):
        dead = [i for i, child in enumerate(children) if child.poll() is not None]
        for i in dead:
            out.print(f"worker {children[i].pid} ended with {children[i].returncode}: another one is started")
            children[i] = subprocess.Popen(command, env=environment)
        pause = min(60.0, 2 * pause) if dead else max(1.0, 0.9 * pause)


def end(children: list[subprocess.Popen[bytes]]) -> None:
    """Tell the workers to end, and wait until they have."""
    for child in children:
        child.terminate()
    for child in children:
        child.wait()
