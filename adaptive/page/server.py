"""`adaptive-window serve`: starts the page, tells how it is, and ends it without losing the job that runs."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from .. import __version__
from ..config import ServeConfig
from ..errors import UsageError
from .gate import Gate
from .jobs import Jobs
from .uploads import Uploads

DELIVERY = 1.0  # seconds for the last results to reach their browsers
LINGERING = 3  # seconds that open connections get at the end

Check = Callable[[str, str], bool]


def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or Ctrl-C: the running job ends first, a second signal does not wait for it.

    Raises:
        UsageError, CodecUnavailable: each names the option at fault.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise UsageError(f'serve needs the extra [page]: pip install "adaptive-window[page]" ({error})') from error
    check = None if config.auth is None else read_auth(config.auth)
    listener = bind(config.host, config.port)
    with _errors_alone(), contextlib.closing(listener), contextlib.closing(open_uploads(config)) as uploads:
        jobs = Jobs(config.jobs or len(os.sched_getaffinity(0)))
        page = Page(config, uploads, jobs, check)
        options = uvicorn.Config(
            page,
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=LINGERING,
            timeout_keep_alive=30,
            proxy_headers=True,  # from the machine itself, as of a proxy beside it; FORWARDED_ALLOW_IPS names others
        )
        server = _draining(uvicorn.Server)(options, jobs)
        page.ready = lambda: print(f"adaptive-window page on {address(config.host, listener)}", flush=True)
        page.failed = lambda: setattr(server, "should_exit", True)
        server.run(sockets=[listener])
    if page.error is not None:
        raise page.error


@contextlib.contextmanager
def _errors_alone() -> Iterator[None]:
    """Audio files are written without a warning that a peak was scaled, which would come of every window."""
    files = logging.getLogger("adaptive_window.audio.files")
    before = files.level
    files.setLevel(logging.ERROR)
    try:
        yield
    finally:
        files.setLevel(before)


class Page:
    """The ASGI application: answers `/healthz` at once, and all else as soon as a job could run."""

    def __init__(self, config: ServeConfig, uploads: Uploads, jobs: Jobs, check: Check | None) -> None:
        self.config, self.uploads, self.jobs, self.check = config, uploads, jobs, check
        self.gate = Gate(uploads, self.health)
        self.error: BaseException | None = None
        self.about: dict[str, Any] = {}
        self.ready: Callable[[], object] = lambda: None
        self.failed: Callable[[], object] = lambda: None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self.gate(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})  # before anything is loaded: /healthz answers meanwhile
        end = asyncio.Event()
        running = asyncio.create_task(self._live(end))
        await receive()
        end.set()
        await running
        await send({"type": "lifespan.shutdown.complete"})

    def health(self) -> tuple[int, dict[str, Any]]:
        state = "stopping" if self.jobs.stopping else "starting" if self.gate.app is None else "ready"
        about = {"status": state, "version": __version__, **self.about}
        return (200 if state == "ready" else 503), about

    async def _live(self, end: asyncio.Event) -> None:
        try:
            loop = asyncio.get_running_loop()
            # a thread of its own: the end of the server does not wait for the loading
            loaded: asyncio.Future[Any] = loop.create_future()

            def load() -> None:
                try:
                    app = self._load()
                except BaseException as error:
                    _settle(loop, loaded, None, error)
                else:
                    _settle(loop, loaded, app, None)

            threading.Thread(target=load, daemon=True, name="load").start()
            ended = asyncio.ensure_future(end.wait())
            await asyncio.wait((loaded, ended), return_when=asyncio.FIRST_COMPLETED)
            if not loaded.done():
                return
            async with _lifespan(app := loaded.result()):
                self.gate.app = app
                self.ready()
                await ended
        except BaseException as error:
            self.error = error
            self.failed()

    def _load(self) -> Any:
        quiet_toolkit(self.uploads.root)
        from .layout import build_app  # the toolkit, whole: a job must not meet modules that a thread has half imported
        from .studio import open_studio

        studio = open_studio(self.config, self.uploads, self.jobs)
        self.about = studio.about()
        return build_app(studio, self.check)


def _settle(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], value: Any, error: BaseException | None
) -> None:
    def settle() -> None:
        if not future.done():
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended before it was loaded
        loop.call_soon_threadsafe(settle)


@contextlib.asynccontextmanager
async def _lifespan(app: Any) -> AsyncIterator[None]:
    async with app.router.lifespan_context(app):
        yield


def _draining(base: type) -> Any:
    class Server(base):
        """Ends on the first signal when the running jobs have, and on the second at once."""

        def __init__(self, options: Any, jobs: Jobs) -> None:
            super().__init__(options)
            self.jobs = jobs

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.jobs.stopping:
                self.should_exit = self.force_exit = True
                return
            # not here: the signal may have come while this thread held the lock
            threading.Thread(target=self._drain, daemon=True, name="drain").start()

        def _drain(self) -> None:
            self.jobs.stop()
            if self.jobs.busy:
                print("ending when the running jobs have", file=sys.stderr, flush=True)
                self.jobs.wait_until_idle()
                time.sleep(DELIVERY)
            self.should_exit = True

    return Server


def quiet_toolkit(folder: Path) -> None:
    """Before the toolkit is imported: its files go to the uploads' folder, and it calls nobody."""
    os.environ.update(
        GRADIO_TEMP_DIR=str(folder),
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_RUN_HISTORY="False",
        GRADIO_SSR_MODE="False",
        HF_HUB_DISABLE_TELEMETRY="1",
    )


def open_uploads(config: ServeConfig) -> Uploads:
    return Uploads(config.uploads, age_seconds=config.keep_minutes * 60)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: no such address here, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: {error.strerror}") from error
    return listener


def address(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


def read_auth(option: str) -> Check:
    """The check of a name and a password, for `USER:FILE`; the password is the file's first line.

    Raises:
        UsageError: not of that form, or the file cannot be read, is empty, or can be read by everybody.
    """
    user, colon, name = option.partition(":")
    if not user or not colon or not name:
        raise UsageError(f"--auth {option}: must be USER:PASSWORD-FILE")
    path = Path(name)
    try:
        if path.stat().st_mode & 0o004:
            raise UsageError(f"--auth {option}: everybody on this machine can read {path}; chmod 600 it")
        password = path.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--auth {option}: {path} cannot be read ({getattr(error, 'strerror', 'no text')})") from error
    if not password:
        raise UsageError(f"--auth {option}: the first line of {path} is empty")

    def check(given_user: str, given_password: str) -> bool:
        # both, whatever the first gives: how long it takes says nothing
        names, passwords = (user.encode(), given_user.encode()), (password.encode(), given_password.encode())
        return hmac.compare_digest(*names) & hmac.compare_digest(*passwords)

    return check
