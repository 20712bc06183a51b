"""Serves the page: what may be sent, what is asked of others (nothing), and what is written (nothing)."""

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, first_line
from .uploads import IMAGE, REPORT, small, to_url, too_large

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI
    from gradio import Blocks

PAGES = 100  # of which sessions are held in memory
DECODED = 2  # images at a time, which may be large
SLACK = 2**20  # bytes of a request around an upload
# A browser is told to fetch nothing from elsewhere, whatever is on the page.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
UPLOAD = "/gradio_api/upload"  # gradio's own, which writes to the disk
UNTOLD = {"docs_url": None, "redoc_url": None, "openapi_url": None}  # it is a page, not an interface for programs
Message = dict[str, Any]


class Guard:
    """Refuses requests that are too large before they are read, and has the browser ask nobody else.

    Args:
        app: what is guarded.
        most_bytes: of an upload.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], most_bytes: int):
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"].endswith(UPLOAD):
            return await PlainTextResponse("Nothing is stored here.", 403)(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.most_bytes + SLACK:
            refusal = PlainTextResponse(too_large(self.most_bytes), 413, {"connection": "close"})
            return await refusal(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await self.app(scope, receive, guarded)


def application(page: "Blocks", most_bytes: int, queue_size: int, report: Path | None) -> "FastAPI":
    """The page as an ASGI application.

    Args:
        page: as `build` makes it.
        most_bytes: of an upload.
        queue_size: requests that wait, beyond which new ones are refused.
        report: the HTML file that is served at `REPORT`.
    """
    import gradio as gr
    from anyio import CapacityLimiter, to_thread
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import FileResponse, PlainTextResponse

    from .page import CSS, theme

    decoding = CapacityLimiter(DECODED)
    app = FastAPI(**UNTOLD)

    @app.post(f"/{IMAGE}")
    async def read_image(request: Request) -> Response:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > most_bytes:
                return PlainTextResponse(too_large(most_bytes), 413)
        try:
            kept = await to_thread.run_sync(lambda: to_url(small(bytes(content))), limiter=decoding)
        except UserError as error:
            return PlainTextResponse(str(error), 422)
        return PlainTextResponse(kept)

    if report is not None:

        @app.get(f"/{REPORT}")
        def read_report() -> FileResponse:
            return FileResponse(report, media_type="text/html")

    page.state_session_capacity = PAGES
    page.queue(max_size=queue_size, api_open=False)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        app_kwargs=UNTOLD,
        run_history=False,  # else the browser keeps what was asked
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        show_error=False,
        theme=theme(),
        css_paths=[CSS],
    )
    app.add_middleware(Guard, most_bytes=most_bytes)
    return app


def bound(host: str, port: int) -> socket.socket:
    """A socket that the page is served at.

    Raises:
        UserError: another program is there, or it may not be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.socket(family)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        return made
    except OSError as error:
        raise UserError(
            f"the page cannot be served at --host {host} --port {port} ({first_line(error)}): name another --port."
        ) from error


def server_of(app: "FastAPI") -> "uvicorn.Server":
    """What serves it, and logs nothing of what is asked."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, server_header=False, ws="none"
    )
    return uvicorn.Server(config)


def run(app: "FastAPI", at: socket.socket) -> None:
    """Serves until it is stopped."""
    with suppress(KeyboardInterrupt):
        server_of(app).run(sockets=[at])
