"""The time from the command to a page that answers, and the weight of the board; beside a one-button gradio app.

`python bench/board.py [RUNS]` starts the two in turn (A B A B ...), prints medians and their ratio. The board signs in
with its one-time link and waits for /config, which is what a browser needs to draw the page.
"""

from __future__ import annotations

import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PEER = """
import sys, gradio as gr
with gr.Blocks(analytics_enabled=False) as page:
    gr.Button("one")
page.launch(server_port=int(sys.argv[1]), quiet=True)
"""
LINK = re.compile(r"(http://\S+)/\?token=(\S+)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def board(port: int, place: Path) -> list[str]:
    return [sys.executable, "-m", "app.cli", "board", "--port", str(port), "--workspace", str(place)]


def peer(port: int, _: Path) -> list[str]:
    return [sys.executable, "-c", PEER, str(port)]


def answers(client: httpx.Client, port: int, log: Path) -> bool:
    """Whether the server gives its /config, signing in where it asks for that."""
    try:
        response = client.get(f"http://127.0.0.1:{port}/config")
        if response.status_code == 401 and (link := LINK.search(log.read_text())):
            client.get(f"{link[1]}/?token={link[2]}")
            response = client.get(f"http://127.0.0.1:{port}/config")
        return response.status_code == 200
    except httpx.HTTPError:
        return False


def measure(command: list[str], port: int, place: Path) -> tuple[float, float]:
    """Return (seconds until /config comes, resident MiB then)."""
    log = place / "log"
    with log.open("w") as out:
        begun = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
    try:
        with httpx.Client() as client:
            while not answers(client, port, log):
                if process.poll() is not None or time.perf_counter() - begun > 120:
                    raise RuntimeError(log.read_text())
                time.sleep(0.02)
        took = time.perf_counter() - begun
        return took, psutil.Process(process.pid).memory_info().rss / 2**20
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    found: dict[str, list[tuple[float, float]]] = {"tuneboard": [], "gradio": []}
    for number in range(rounds + 1):
        for name, command in (("tuneboard", board), ("gradio", peer)):
            with tempfile.TemporaryDirectory() as place:
                port = free_port()
                figures = measure(command(port, Path(place)), port, Path(place))
            if number:  # the first round warms the disk cache
                found[name].append(figures)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    for name, (seconds, megabytes) in medians.items():
        print(f"{name:10s} {seconds:5.2f} s to the page  {megabytes:5.0f} MiB  (median of {rounds})")
    ratios = [a / b for a, b in zip(*medians.values(), strict=True)]
    print(f"ratio      {ratios[0]:5.2f}                {ratios[1]:5.2f}")

    from core import config

    layer = {"tuner": {"rank": 8}, "training": {"batch_size": 4}}
    config.resolve(layer)
    took = min(timeit.repeat(lambda: config.resolve(layer), number=200, repeat=5)) / 200
    print(f"config.resolve {took * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
