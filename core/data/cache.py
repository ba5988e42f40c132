"""Encoded sets on disk, so that the next run over the same rows starts at once.

One Arrow file a set, named by all that its content follows from: data, description, template, tokenizer, settings.
Written aside and renamed, so that two runs at once are safe; mapped into memory, so that reading it costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from core.data.encode import Counts, Encoded

VERSION = 5
"""Raised whenever the same input gives other tokens than before."""
ROOM = 1 << 30
"""Bytes that must stay free on the disk; below, nothing is cached."""


def key(**parts: Any) -> str:
    """Return the name of what follows from these parts."""
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read(place: Path, name: str) -> tuple[Encoded, Counts] | None:
    """Return an encoded set; None where there is none, or a broken one."""
    path = place / f"{name}.arrow"
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        counts = Counts(**json.loads(table.schema.metadata[b"counts"]))
        os.utime(path)  # when it was used last
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None
    ids, learned = (table.column(name).combine_chunks() for name in ("ids", "learned"))
    starts = np.array(ids.offsets)
    source = table.column("source").to_numpy()
    media, liked = (
        table.column(name).to_numpy() if name in table.column_names else None for name in ("media", "liked")
    )
    ids_N, learned_N = ids.values.to_numpy(), learned.values.to_numpy().view(bool)
    return Encoded(ids_N, learned_N, starts.astype(np.int64), source, media, liked), counts


def write(place: Path, name: str, encoded: Encoded, counts: Counts) -> None:
    """Keep an encoded set; where the disk is nearly full, don't."""
    place.mkdir(parents=True, exist_ok=True)
    needed = encoded.ids_N.nbytes + encoded.learned_N.nbytes + encoded.starts_B1.nbytes + encoded.source_B.nbytes
    if shutil.disk_usage(place).free < needed + ROOM:
        return
    offsets = pa.array(encoded.starts_B1, pa.int64())
    columns = {
        "ids": pa.LargeListArray.from_arrays(offsets, pa.array(encoded.ids_N)),
        "learned": pa.LargeListArray.from_arrays(offsets, pa.array(encoded.learned_N.view(np.uint8))),
        "source": pa.array(encoded.source_B),
    }
    if encoded.media_B is not None:
        columns["media"] = pa.array(encoded.media_B, pa.large_string())
    if encoded.liked_B is not None:
        columns["liked"] = pa.array(encoded.liked_B)
    table = pa.table(columns).replace_schema_metadata({"counts": json.dumps(asdict(counts))})
    aside = place / f".{name}.{os.getpid()}.{threading.get_ident()}"
    try:
        with pa.ipc.new_file(aside, table.schema) as file:
            file.write_table(table)
        aside.replace(place / f"{name}.arrow")
    finally:
        aside.unlink(missing_ok=True)
