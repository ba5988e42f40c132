"""Whether adapters that runs have trained meet the base that they were trained on, and warnings where they don't."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from core.config import Run, saved_by
from core.errors import InputError
from core.models.identity import identity
from core.models.loading import model_folder
from core.sections import Model
from core.workspace import Context, locate, tuned


def warn_of(references: Sequence[str], model: Model, context: Context, place: str) -> None:
    """Tell of each adapter of a run that was trained on another model, or on one that counts positions otherwise.

    Of a base that is gone by now nothing is said: it may be the same, elsewhere. Nor of an adapter that is: a run that
    goes on has a copy, and was told before.
    """
    for reference in references:
        if (before := _base_of(reference, context.workspace)) is None:
            continue
        with suppress(InputError):
            there, here = locate(before.path, context.workspace), model_folder(model, context.workspace)
            if there.resolve() != here.resolve() and identity(there) != identity(here):
                params = {"run": reference, "base": before.path, "model": model.path}
                context.events.write("warning", code="adapter.other_base", place=place, params=params)
        if (before.rope, before.context) != (model.rope, model.context):
            params = {"run": reference, "before": _positions(before), "now": _positions(model)}
            context.events.write("warning", code="adapter.other_positions", place=place, params=params)


def _base_of(reference: str, workspace: Path) -> Model | None:
    """Return the model that the run of an adapter was given; None for one from elsewhere or gone, or a whole model."""
    with suppress(InputError):  # it is gone
        adapter = tuned(reference, workspace)
        job = None if (adapter / "config.json").exists() else saved_by(adapter)
        return job.model if isinstance(job, Run) else None
    return None


def _positions(model: Model) -> str:
    return f"rope={model.rope}, context={model.context}"
