"""Supervised fine-tuning: learn answers by example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from core.schema import crossed, knob
from core.stages import Stage

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Sft(Stage):
    """Supervised fine-tuning
    Learn to answer as the examples do."""

    kind: Literal["sft"] = "sft"
    train_on_prompt: bool = knob(False, expert=True)
    """Learn the prompts, too
    Count the loss on the questions as well. Useful for very few or very short answers."""

    mask_history: bool = knob(False, expert=True)
    """Learn the last answer only
    Of a conversation with several turns only the last answer is learned; earlier ones are what it rests on."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Sft:
        if self.train_on_prompt and self.mask_history:
            raise crossed("sft.prompt_and_last", "stage.sft.mask_history")
        return self

    def train(self, run: Run, context: Context) -> dict[str, float]:
        from transformers import set_seed

        from core.checkpoints import telling_full_disk
        from core.data import batch
        from core.models.loading import check_vocabulary, load_model, load_tokenizer
        from core.training import results
        from core.training.fit import fit
        from core.training.phases import Phases

        phases = Phases(context)
        phases.begin("load_tokenizer")
        tokenizer = load_tokenizer(run.model, context.workspace, context.events, template=run.data.template)
        phases.begin("load_data")
        lessons = batch.load(
            run.data,
            context.workspace,
            tokenizer,
            run.training.seed,
            train_on_prompt=self.train_on_prompt,
            mask_history=self.mask_history,
            advance=phases.advance,
        )
        if not run.data.streaming:
            phases.warn_of(lessons.counts, run.data.cutoff)
        phases.begin("load_model")
        model = load_model(run.model, context.workspace, run.hardware, training=True, longest=run.data.cutoff)
        check_vocabulary(model, tokenizer)
        phases.check_context(model.config, lessons)
        set_seed(run.training.seed)
        with telling_full_disk(context.folder):
            model = run.tuner.attach(model, context.folder)
            steps = fit(run, context, model, lessons, tokenizer.pad_token_id)
            if run.data.streaming:
                phases.warn_of(lessons.counts, run.data.cutoff)
            phases.begin("save", step=steps, total=steps)
            saved = run.tuner.save(model, tokenizer, context.folder)
            context.events.write("saved", what=saved.name, path=saved.name, step=steps)
            return results.write(context.folder, context.events.state)
