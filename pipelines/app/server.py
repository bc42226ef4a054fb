"""The server of the live page: on this computer alone, without any request to another one."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from options.app_options import AppCommand
from util.cli import UserError
from util.files import claim_folder, write_json
from util.locks import locked_folder

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
MAX_PORT = 65535
RECORD = "app.json"  # marks a work folder
PACKAGES = ("gradio", "fastapi", "uvicorn")
# The browser itself refuses whatever would leave this computer.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
CSS = """
#form { max-height: 56vh; overflow-y: auto; flex-wrap: nowrap; gap: .4rem; }
#form .row { align-items: end; flex-shrink: 0; }
.page-head { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; align-items: center; }
.page-head h1 { margin: 0 !important; font-size: 1.3rem; }
.page-head p { flex: 1 1 24rem; margin: 0 !important; padding: .2rem .8rem; border-radius: 8px; }
.page-head p { font-size: .8rem; background: #fdf4e1; color: #7a4b00; }
.asked { font-size: .85rem; max-height: 18rem; overflow-y: auto; }
#prompts mark { background: #ffe9a8; color: inherit; }
#prompts h2 { display: none; }
#prompts p { margin: .15rem 0; }
#voxel { display: none; }
.problem { color: #b3261e; }
#status { min-height: 1.6rem; }
"""


def check_packages() -> None:
    """Raise `UserError` where the packages of the page are not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"The live page needs packages that are not installed: {', '.join(missing)}. Install "
            "them: pip install -r requirements-app.txt -c constraints.txt"
        )


@contextlib.contextmanager
def reserved_port(port: int) -> Iterator[socket.socket]:
    """Hold a port of this computer while the block runs.

    Raises:
        UserError: Another program uses it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((HOST, port))
            taken.listen()
        except OSError as error:
            raise UserError(
                f"--port {port} cannot be used ({error.strerror}): another program has it, perhaps "
                "another page of this project. Close it, or choose another port, such as --port "
                f"{port + 1 if port < MAX_PORT else port - 1}."
            ) from None
        yield taken


@contextlib.contextmanager
def work_folder(path: str) -> Iterator[Path]:
    """Yield the folder of the page's files; a temporary one is removed at the end.

    Raises:
        UserError: The folder cannot be written, holds something else, or another page uses it.
    """
    if not path:
        with tempfile.TemporaryDirectory(prefix="mask2ct-app-") as temporary:
            yield Path(temporary)
        return
    folder = Path(path)
    try:
        claim_folder(folder, [RECORD], overwrite=True, flag="--work_dir")
        write_json(folder / RECORD, {"page": "scripts/app.py"})
    except OSError as error:
        raise UserError(
            f"--work_dir {path} cannot be written ({error.strerror}). Choose another folder."
        ) from None
    with locked_folder(folder, "--work_dir"):
        yield folder


def run_app(options: AppCommand) -> None:
    """Load the run and serve its page until Ctrl-C.

    Raises:
        UserError: A package is missing, the port is in use, the folder cannot be written, or the
            run or the cohort cannot be used.
    """
    check_packages()
    with reserved_port(options.app.port) as port, work_folder(options.app.work_dir) as folder:
        # No telemetry, and no look-ups on hubs; uploads stay in the work folder.
        os.environ.update(
            GRADIO_ANALYTICS_ENABLED="False",
            HF_HUB_DISABLE_TELEMETRY="1",
            GRADIO_TEMP_DIR=str(folder / "uploads"),
        )
        serve(build_app(options, folder), port, options)


def build_app(options: AppCommand, folder: Path) -> Any:
    """Return the page as an ASGI application.

    Args:
        options: The flags.
        folder: Folder of masks, answers and exports.

    Raises:
        UserError: The run or the cohort cannot be used.
    """
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.staticfiles import StaticFiles

    from pipelines.app.answer import AnswerDesk
    from pipelines.app.controls import VIEW, page_head
    from pipelines.app.page import AskPage
    from pipelines.app.session import AppSession
    from pipelines.app.teaching import LISTEN, build_teaching

    session = AppSession.from_options(options, folder)
    for name in ("answers", "exports", "uploads"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    address = f"http://{HOST}:{options.app.port}"
    desk = AnswerDesk(session, folder / "answers")
    title = f"Mask2CT: {session.run.folder.name}"
    with gr.Blocks(analytics_enabled=False, title=title, fill_width=True) as page:
        page_head(title)
        with gr.Tab("Ask", id="ask"):
            AskPage(session, desk, address, folder / "exports").build()
        build_teaching(desk, options.app)
    page.queue(default_concurrency_limit=1, api_open=False)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    app.middleware("http")(_with_policy)
    app.mount(f"/{VIEW}", StaticFiles(directory=folder / "answers", html=True))
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=HOST,
        server_port=options.app.port,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        allowed_paths=[str(folder / "exports")],
        theme=gr.themes.Default(**fonts),
        css=CSS,
        head=LISTEN,
    )


async def _with_policy(request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
    response = await call_next(request)
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def serve(app: Any, port: socket.socket, options: AppCommand) -> None:
    """Serve the page on a reserved port until Ctrl-C."""
    import uvicorn

    address = f"http://{HOST}:{options.app.port}"
    log.info("The page is at %s (Ctrl-C ends it).", address)
    if options.app.open_browser:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with contextlib.suppress(KeyboardInterrupt):  # the usual end
        server.run(sockets=[port])
    log.info("The page is closed.")
