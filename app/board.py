"""The board: one page of tabs behind the guard, served by uvicorn."""

from __future__ import annotations

import importlib
import os
import pkgutil
import socket
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import uvicorn
from fastapi import FastAPI

from app import jobs
from app.cli_speak import note, say
from app.guard import Guard, allowed_hosts, is_loopback
from app.i18n import LANGUAGES, number, pick, tr
from app.lean import gr, growing  # before all that imports gradio
from app.live import BUSY, IDLE
from app.page import QUIET, TELLING, Page
from app.sessions import MIN_PASSWORD, Sessions, load_secret
from app.show import LOOKS
from app.theme import HEAD, theme
from core import queue, runs
from core.errors import InputError

ASSETS = Path(__file__).parent.parent / "assets"
DEFAULT_PORT, PORTS = 7860, 40
"""The port that is tried first when none is asked for, and how many from there on."""
SESSIONS = 256
"""Pages whose state is kept, the newest; gradio would keep 10,000, about half a MB each."""
MOST = 100
"""Runs that can be picked at most, the newest."""
NAMES = {"en": "English", "ru": "Русский", "zh": "中文"}
TO_URL = """(run) => {
  const url = new URL(location);
  if (run) url.searchParams.set("run", run); else url.searchParams.delete("run");
  if (url.href !== location.href) history.replaceState(history.state, "", url);
}"""
TO_PAGE = "(language) => { document.documentElement.lang = language; return language; }"


def tabs() -> list[ModuleType]:
    """Return the modules of the tabs in their order."""
    package = importlib.import_module("app.tabs")
    found = [importlib.import_module(f"app.tabs.{info.name}") for info in pkgutil.iter_modules(package.__path__)]
    return sorted((module for module in found if "ORDER" in vars(module)), key=lambda module: module.ORDER)


def build(workspace: Path, allowed: tuple[Path, ...] = (), run: str = "") -> gr.Blocks:
    """Return the page; `run` is shown where the address names none."""
    with gr.Blocks(title="Tuneboard", analytics_enabled=False, fill_width=True) as blocks:
        language, shown, clone, subject = gr.State("en"), gr.State(""), gr.State(("", 0)), gr.State(("", 0))
        data = gr.State(({}, 0))
        chosen = gr.BrowserState("", storage_key="tuneboard.language", secret="no secret: a language")
        with gr.Row(elem_classes=["tb-header"]):
            gr.HTML("<h1>Tuneboard</h1>", elem_classes=["tb-brand"])
            badge = gr.HTML(elem_id="tb-badge")
            picker = gr.Dropdown([], elem_id="tb-run-picker", container=False, allow_custom_value=True)
            tongue = gr.Dropdown(
                [(NAMES[code], code) for code in LANGUAGES],
                value="en",
                elem_id="tb-language",
                container=False,
                filterable=False,
            )
            gr.Button("◐", elem_id="tb-theme", elem_classes=["tb-theme"], size="sm")
        with gr.Tabs(elem_id="tb-tabs", selected="train") as all_tabs:
            page = Page(workspace, language, shown, all_tabs, clone, subject, data, allowed)
            for module in tabs():
                tab = gr.Tab(id=module.KEY, elem_id=f"tb-tab-{module.KEY}")
                with page.say(tab, label=f"ui.board.tab.{module.KEY}"):
                    module.build(page, tab)
        page.say(picker, label="ui.board.run")
        page.say(tongue, label="ui.board.language")
        _wire(blocks, page, chosen, badge, picker, tongue, run)
    blocks.state_session_capacity = SESSIONS
    return blocks.queue(default_concurrency_limit=8, max_size=64)


def _wire(
    blocks: gr.Blocks,
    page: Page,
    chosen: gr.BrowserState,
    badge: gr.HTML,
    picker: gr.Dropdown,
    tongue: gr.Dropdown,
    run: str,
) -> None:
    """Connect the header: language, shown run, badge."""
    translated = [component for component, _ in page.texts]

    def arrive(kept: Any, request: gr.Request) -> list[Any]:
        lang = kept if kept in LANGUAGES else pick(request.headers.get("accept-language"))
        texts = page.translated(lang) if lang != "en" else [gr.skip()] * len(translated)
        return [_first_run(page, request.query_params.get("run") or run), lang, lang, *texts]

    def switch(lang: str) -> list[Any]:
        return [lang, lang, *page.translated(lang)]

    def choices(name: str, lang: str) -> Any:
        return gr.update(choices=_choices(page, lang), value=name or None)

    def beat(name: str, lang: str, before: tuple[str, str, str]) -> list[Any]:
        told, status = _badge(page, name, lang)
        same = (status, lang) == before[1:]
        pace = gr.skip() if same else gr.Timer(BUSY * 2 if status in runs.ACTIVE else IDLE)
        badge_update = gr.skip() if told == before[0] else told
        return [badge_update, gr.skip() if same else choices(name, lang), (told, status, lang), pace]

    landed = blocks.load(arrive, chosen, [page.run, page.language, tongue, *translated], **TELLING)
    for follow in page.landing:
        follow(landed)
    tongue.input(switch, tongue, [page.language, chosen, *translated], **TELLING)
    tongue.change(None, tongue, None, js=TO_PAGE)
    picker.input(lambda name: name if isinstance(name, str) else "", picker, page.run, **TELLING)
    picker.change(None, picker, None, js=TO_URL)
    picker.focus(choices, [page.run, page.language], picker, **QUIET)
    page.run.change(choices, [page.run, page.language], picker, **QUIET)
    before, timer = gr.State(("", "", "")), gr.Timer(BUSY * 2)
    for event in (timer.tick, page.run.change, page.language.change):
        event(beat, [page.run, page.language, before], [badge, picker, before, timer], **QUIET)


def _first_run(page: Page, asked: str) -> str:
    """Return the training run to show first: the one asked for, else the newest active one, else the newest."""
    folders = jobs.of_kind("train", page.workspace)
    if asked in {folder.name for folder in folders}:
        return asked
    active = [folder for folder in folders[:20] if runs.supervisor(folder) is not None]
    return next((folder.name for folder in (*active, *folders)), "")


def _choices(page: Page, language: str) -> list[tuple[str, str]]:
    found = []
    for folder in jobs.of_kind("train", page.workspace)[:MOST]:
        with page.watch.view(folder) as view:
            found.append((f"{view.name} · {tr(language, f'ui.status.{view.status}')}", view.name))
    return found


def _badge(page: Page, name: str, language: str) -> tuple[str, str]:
    """Return (the dot and the percentage of the shown run, its status)."""
    try:
        folder = runs.find(name, page.workspace)
    except InputError:
        return "", ""
    with page.watch.view(folder) as view:
        share, status = "", tr(language, f"ui.status.{view.status}")
        if view.active and view.state.total:
            share = f"{number(language, int(100 * view.state.step / view.state.total))} %"
        chip = f"tb-chip tb-dot tb-chip-{LOOKS.get(view.status, 'new')}"
        return f'<span class="{chip}" title="{escape(status)}">{share or escape(status)}</span>', view.status


def application(workspace: Path, allowed: tuple[Path, ...] = (), run: str = "") -> FastAPI:
    """Return the board as an ASGI application, without the guard."""
    head = f"{HEAD}<style>{_asset('panels.css')}</style><script>{_asset('page.js')}</script>"
    # Neither docs nor a schema of our own: the page is all there is.
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    return gr.mount_gradio_app(
        outer,
        build(workspace, allowed, run),
        path="/",
        theme=theme(),
        head=head,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size="512mb",
    )


def serve(
    workspace: Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    allowed: tuple[Path, ...] = (),
    hosts: Iterable[str] = (),
    run: str = "",
    ready: Callable[[str], None] = lambda link: None,
) -> None:
    """Serve the board until it is interrupted; `ready` hears the link that lets a browser in.

    Raises InputError where address or password won't do.
    """
    password = os.environ.get("TUNEBOARD_PASSWORD") or None
    if password is None and not is_loopback(host):
        raise InputError("cli.board_password", host=host)
    if password is not None and len(password) < MIN_PASSWORD:
        raise InputError("cli.board_password_short", length=MIN_PASSWORD)
    queue.wake(workspace)  # after a restart of the machine, too, what waits goes on
    listener = _listen(host, port)
    bound = listener.getsockname()[1]
    name = f"[{host}]" if ":" in host else host
    address = f"http://{'127.0.0.1' if name in ('0.0.0.0', '[::]') else name}:{bound}"
    state = workspace / ".tuneboard"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    sessions = Sessions(load_secret(state / "secret"), address, _again, password)
    with growing():
        bare = application(workspace, allowed, run)
    guarded = Guard(bare, hosts=allowed_hosts(bound, _names(host, hosts)), sessions=sessions)
    link = sessions.link()
    _welcome(link, workspace)
    ready(link)
    # Open pages hold streams that never end by themselves: they must not keep the board from ending.
    config = uvicorn.Config(
        guarded,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _names(host: str, hosts: Iterable[str]) -> list[str]:
    return [*hosts, *([] if host in ("0.0.0.0", "::", "") else [host])]


def _listen(host: str, port: int | None) -> socket.socket:
    """Return a listening socket: at the port asked for, or from the default one on at the first that is free."""
    first = port or DEFAULT_PORT
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(first, first + (1 if port else PORTS)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
        except PermissionError:
            listener.close()
            raise InputError("cli.port_denied", port=str(candidate)) from None
        except OSError:
            listener.close()
            continue
        listener.listen(128)
        return listener
    raise InputError("cli.port_taken", port=str(first), holder=_holder(first))


def _holder(port: int) -> str:
    """Return who listens at a port, as far as this user may know it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:] == (port,) and connection.pid:
                return f"{psutil.Process(connection.pid).name()}, pid {connection.pid}"
    except psutil.Error:
        pass
    return "?"


def _welcome(link: str, workspace: Path) -> None:
    """Print where the board is and how to come in."""
    note(f"{say('link')}\n\n    {link}\n")
    note(say("workspace", folder=workspace / "runs"))


def _again(link: str) -> None:
    note(f"{say('again')} {link}")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
