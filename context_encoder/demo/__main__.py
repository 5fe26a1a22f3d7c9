"""``python -m context_encoder.demo``: a page in the browser that fills holes in images."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import signal
import socket
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from context_encoder.runs import Which
from context_encoder.utils.cli import DONE, parse_arguments, run_command, stopped_by

if TYPE_CHECKING:
    from starlette.applications import Starlette

_NEEDED = ("starlette", "uvicorn")
_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Arguments:
    """Open a page in the browser that fills holes in images.

    Drop an image, mark what is to be filled, and see the result beside OpenCV's. The page is
    served to this machine alone unless --host says otherwise, needs no network, and keeps no
    image: all stay in memory. Ctrl-C ends it.
    """

    checkpoint: Annotated[
        tuple[Path, ...],
        arg(
            metavar="RUN [RUN ...]",
            help="Run folders that training made; their networks can be chosen on the page, "
            "besides the one that is included.",
            help_behavior_hint="",
        ),
    ] = ()
    which: Annotated[
        Which, arg(help="Checkpoint of the runs: best on held-out photographs, or last.")
    ] = "best"
    device: Annotated[
        str, arg(help="Of the runs' networks: auto (a GPU if there is one), cpu, cuda or cuda:N.")
    ] = "auto"
    host: Annotated[
        str,
        arg(help="Address to serve the page at. 0.0.0.0: to everyone who reaches this machine."),
    ] = "127.0.0.1"
    port: Annotated[int, arg(help="Port; 0 for any that is free.")] = 8765
    max_upload: Annotated[int, arg(help="Largest file that the page accepts, in MiB.")] = 200
    browser: Annotated[
        bool, arg(help="Open the page in the default browser, if there is a desktop.")
    ] = True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return run_command("demo", partial(parse_arguments, Arguments), _serve, arguments)


def _serve(args: Arguments) -> int:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the page needs {' and '.join(missing)}: pip install 'context-encoder[demo]'"
        )
    if args.max_upload < 1:
        raise ValueError(f"`max_upload` must be at least 1 MiB, got {args.max_upload}")
    with _listening(args.host, args.port) as listener:
        # Only now: these import what is perhaps missing, and take long.
        from context_encoder.demo.app import Limits, make_app
        from context_encoder.demo.filling import Networks

        networks = Networks(args.checkpoint, args.which, args.device)
        local = _is_local(listener.getsockname()[0])
        app = make_app(networks, Limits(upload=args.max_upload), _NAMES if local else ("*",))
        url = _url(listener)
        print(f"the page is at {url}\nCtrl-C ends it", flush=True)
        if not local:
            print(
                "everyone who can reach this machine can use the page, and nothing is encrypted",
                file=sys.stderr,
            )
        if args.browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            webbrowser.open(url)
        return _run(app, listener)


def _run(app: Starlette, listener: socket.socket) -> int:
    """Serve until a signal ends it; returns the exit status."""
    import uvicorn

    ended: list[int] = []

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            ended.append(sig)
            app.state.server.closing.set()  # fills in progress end, and their connections
            super().handle_exit(sig, frame)

    server = Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, ws="none"
        )
    )
    # uvicorn handles signals while it runs. Before, SIGTERM ends it as soon as it does; after the
    # connections are closed, it raises the signal again, which must not end the process.
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
    if signal.SIGINT in ended:  # where it is ignored, as in the background, uvicorn's is not
        raise KeyboardInterrupt
    return stopped_by(signal.SIGTERM) if ended else DONE


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens; ValueError if the address cannot be used."""
    if not 0 <= port <= 65535:
        raise ValueError(f"`port` must be 0 to 65535, got {port}")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(
            f"cannot serve at {host}, port {port}: {reason}; choose another `port` (0: any that "
            "is free) or `host`"
        ) from error
    return listener


def _is_local(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _url(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    if ipaddress.ip_address(address.partition("%")[0]).is_unspecified:
        address = socket.gethostname()
    return f"http://{f'[{address}]' if ':' in address else address}:{port}/"


if __name__ == "__main__":
    sys.exit(main())
