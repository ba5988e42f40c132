"""`tuneboard`: the command line. Each command resolves a job, runs it under its supervisor and follows its events.

Start-up is cold: neither gradio nor torch is imported before a command needs it.
"""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from app import cli_data, cli_queue, cli_trust
from app.cli_follow import finish, start
from app.cli_options import Json, Place, RemoteCode, option, room
from app.cli_speak import Answer, answering, number, out, say
from app.jobs import base
from core import config, runs, workspace, yamls
from core.errors import InputError
from core.models import consent
from core.recipes import recipe as named_recipe

Words = Annotated[list[str] | None, typer.Argument(metavar="FILE.yaml|key=value", help=say("option.words"))]
ACTS = "list|show|log|stop|resume|join|delete"
Detach = Annotated[bool, option("detach", "--detach", "-d")]

main = typer.Typer(
    name="tuneboard",
    help=say("help"),
    epilog=say("exit_codes"),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

main.add_typer(cli_data.main, name="data", help=say("command.data"))


def command(name: str):
    """Register a command under its name, with its help from the locale key ui.cli.command.<name>."""
    return main.command(name, help=say(f"command.{name}"), epilog=say("exit_codes"))


def version() -> str:
    """Return the version of this Tuneboard, installed or run from its checkout."""
    try:
        return metadata.version("tuneboard")
    except metadata.PackageNotFoundError:
        return tomllib.loads((workspace.BUNDLED / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def _version(asked: bool) -> None:
    if asked:
        out(f"tuneboard {version()}")
        raise typer.Exit


@main.callback()
def _root(asked: Annotated[bool, option("version", "--version", callback=_version, is_eager=True)] = False) -> None:
    """The options that stand before every command; what may be in the environment lets no code run."""
    consent.allow(False)


def layers(words: list[str] | None) -> list[dict]:
    """Return the settings that the words of a command line give: a YAML file if one is named, then `key=value`s."""
    files = [word for word in words or [] if "=" not in word]
    if len(files) > 1:
        raise InputError("config.assignment", text=files[1])
    found = [_read(Path(name)) for name in files]
    return [*found, config.override(word for word in words or [] if "=" in word)]


def _read(path: Path) -> dict:
    try:
        return yamls.mapping(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise InputError("path.missing", path=str(path)) from None
    except (OSError, UnicodeDecodeError):
        raise InputError("cli.file_unreadable", path=str(path)) from None


@command("train")
def train(
    words: Words = None,
    recipe: Annotated[str, option("recipe", "--recipe", "-r")] = "",
    sweep: Annotated[list[str] | None, option("sweep", "--sweep", "-s", metavar="key=value,value")] = None,
    queued: Annotated[bool, option("queued", "--queue", "-q")] = False,
    place: Place = None,
    detach: Detach = False,
    remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    with answering(as_json) as answer:
        given = [*([named_recipe(recipe).layer] if recipe else []), *layers(words)]
        if sweep or queued:
            cli_queue.enqueue(given, sweep or [], room(place), answer)
        else:
            _do(config.resolve(*given, job="train"), "train", room(place), detach, answer)


@command("evaluate")
def evaluate(
    words: Words = None,
    place: Place = None,
    detach: Detach = False,
    remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    from app.cli_demo import measures

    with answering(as_json) as answer:
        given = layers(words)
        tuned = config.merge(*given).get("tuned") or []
        below = from_tuned(tuned[0] if isinstance(tuned, list) else str(tuned), room(place)) if tuned else {}
        _do(config.resolve(below, *given, job="evaluation"), "evaluation", room(place), detach, answer)
        if metrics := answer.fields["metrics"]:
            answer.show(measures(metrics))


@command("export")
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help=say("option.run"))],
    words: Annotated[list[str] | None, typer.Argument(metavar="key=value", help=say("option.words"))] = None,
    to: Annotated[str, option("to", "--to")] = "",
    place: Place = None,
    detach: Detach = False,
    remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    with answering(as_json) as answer:
        # what was trained above few bits is merged into the whole weights
        asked: dict[str, Any] = {"source": run, "model": {"quantizer": {"kind": "none"}}}
        asked |= {"folder": str(Path(to).expanduser().resolve())} if to else {}
        job = config.resolve(from_tuned(run, room(place)), asked, *layers(words), job="export")
        _do(job, "export", room(place), detach, answer)
        if metrics := answer.fields["metrics"]:
            said = {name: number(metrics[name]) for name in ("folder", "difference", "largest")}
            answer.show(say("exported", **said))


@command("chat")
def chat(
    tuned: Annotated[list[str] | None, typer.Argument(metavar="RUN", help=say("option.tuned"))] = None,
    model: Annotated[str, option("model", "--model", "-m")] = "",
    prompt: Annotated[str, option("prompt", "--prompt", "-p")] = "",
    images: Annotated[list[Path] | None, option("image", "--image", "-i")] = None,
    settings: Annotated[list[str] | None, option("set", "--set", "-s", metavar="key=value")] = None,
    place: Place = None,
    remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    from app.cli_chat import talk

    with answering(as_json) as answer:
        below = from_tuned(tuned[0], room(place)) if tuned else {}
        asked = {"tuned": tuned or [], **({"model": {"path": model}} if model else {})}
        generation = config.override(word for word in settings or [] if word.startswith("generation."))
        rest = config.override(word for word in settings or [] if not word.startswith("generation."))
        job = config.resolve(below, asked, rest, job="serving")
        if as_json and not prompt:
            raise InputError("cli.prompt_needed")
        assert isinstance(job, config.Serving)
        talk(job, room(place), prompt, images or [], generation.get("generation", {}), answer)


@command("runs")
def runs_(
    what: Annotated[str, typer.Argument(metavar=f"{ACTS}|sweep", help=say("option.what"))] = "list",
    name: Annotated[str, typer.Argument(metavar="NAME", help=say("option.name"))] = "",
    node: Annotated[int, option("node", "--node")] = 1,
    place: Place = None,
    detach: Detach = False,
    remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    from app.cli_runs import ACTIONS

    with answering(as_json) as answer:
        if what not in (*ACTIONS, "resume", "join", "sweep"):
            raise InputError("cli.action", given=what, known=", ".join([*ACTIONS, "resume", "join", "sweep"]))
        if what == "list":
            ACTIONS[what](room(place), answer)
        elif what == "sweep":
            cli_queue.table(name, room(place), answer)
        elif what == "resume":
            folder = runs.find(name, room(place))
            runs.resume(folder)
            finish(folder, detach, answer)
        elif what == "join":
            runs.join(runs.find(name, room(place)), node)
        else:
            ACTIONS[what](runs.find(name, room(place)), answer)


command("queue")(cli_queue.queue_)
command("trust")(cli_trust.trust)


@command("settings")
def settings(job: Annotated[str, typer.Argument(metavar="JOB")] = "train", as_json: Json = False) -> None:
    from app.cli_settings import show

    with answering(as_json) as answer:
        if job not in config.JOBS:
            raise InputError("config.job", "kind", given=job, known=", ".join(config.JOBS))
        show(job, answer)


@command("doctor")
def doctor(
    words: Words = None,
    recipe: Annotated[str, option("recipe", "--recipe", "-r")] = "",
    place: Place = None,
    remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    from app.cli_doctor import examine, foresee

    with answering(as_json) as answer:
        if words or recipe:
            below = [named_recipe(recipe).layer] if recipe else []
            foresee(config.run(*below, *layers(words)), room(place), answer)
        else:
            examine(room(place), answer)


@command("board")
def board(
    host: Annotated[str, option("host", "--host")] = "127.0.0.1",
    port: Annotated[int | None, option("port", "--port", min=1, max=65535)] = None,
    place: Place = None,
    allow: Annotated[list[Path] | None, option("allow", "--allow")] = None,
    allowed_host: Annotated[list[str] | None, option("allowed_host", "--allowed-host")] = None,
    remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    with answering(as_json) as answer:
        open_board(answer, room(place), host, port, allow or [], allowed_host or [])


@command("demo")
def demo(
    headless: Annotated[bool, option("headless", "--headless")] = False,
    host: Annotated[str, option("host", "--host")] = "127.0.0.1",
    port: Annotated[int | None, option("port", "--port", min=1, max=65535)] = None,
    place: Place = None,
    as_json: Json = False,
) -> None:
    from app.cli_demo import demonstrate

    with answering(as_json) as answer:
        job = config.resolve(named_recipe("demo").layer, job="train")
        if headless or as_json:
            demonstrate(job, room(place), answer)
        else:
            folder = start(job, room(place), answer)
            open_board(answer, room(place), host, port, [], [], run=folder.name)


def open_board(
    answer: Answer, place: Path, host: str, port: int | None, allow: list[Path], hosts: list[str], run: str = ""
) -> None:
    """Serve the board until it is interrupted; say its link as soon as it can be opened."""
    from app.board import serve  # gradio: seconds and hundreds of MB, for this command only

    def ready(link: str) -> None:
        answer.fields |= {"link": link, "workspace": str(place)}
        answer.tell()

    serve(place, host=host, port=port, allowed=tuple(allow), hosts=tuple(hosts), run=run, ready=ready)


def from_tuned(reference: str, place: Path) -> dict:
    """Return the layer that says from which base a run or an adapter was tuned."""
    model = base(reference, place)
    return {"model": model} if model else {}


def _do(job: config.Job, kind: str, place: Path, detach: bool, answer: Answer) -> None:
    """Run a job that must be of one kind; a YAML file may name another, which would be a mistake."""
    if job.kind != kind:
        raise InputError("config.job", "kind", given=job.kind, known=kind)
    finish(start(job, place, answer), detach, answer)


if __name__ == "__main__":
    main()
