"""Group relative policy optimization (Shao et al., arXiv 2402.03300)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from core.rewards import Drawing, Reward, check
from core.schema import knob
from core.stages import Stage

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Grpo(Stage):
    """GRPO
    Let the model answer each question several times and make the answers likelier that are better than their group:
    for tasks whose answers can be checked. Needs no value head."""

    kind: Literal["grpo"] = "grpo"
    wanted: ClassVar = ("answer",)
    draws: ClassVar = True
    measure: ClassVar = "rewards/mean"
    reward: Reward = knob(Reward())
    """Reward
    What an answer is worth."""
    drawing: Drawing = knob(Drawing())
    """Answers
    How answers are drawn."""
    group: int = knob(8, ge=2, le=256)
    """Group
    Answers to each question, which are compared with each other. Typical: 4 to 16."""
    epochs: int = knob(1, ge=1, le=100)
    """Passes
    How often the answers of a step are learned from before new ones are drawn. Typical: 1 to 4."""
    minibatch: int = knob(0, ge=0, le=65_536)
    """Answers a part
    Answers that are learned from at once; fewer take less memory. 0: all of a step."""
    clip: float = knob(0.2, gt=0, lt=1, expert=True)
    """Clipping
    How far the probability of a token may move in one step. Typical: 0.1 to 0.2."""
    kl_weight: float = knob(0.0, ge=0, le=10)
    """Weight of the distance
    How strongly the model is held to what it was. 0 lets it go: full tuning then spares a copy of the model; with LoRA
    the distance is told all the same, at the cost of a pass without gradients. Typical: 0 to 0.04."""
    scale: bool = knob(True, expert=True)
    """Divide by the spread
    Divide what an answer is better than its group by the spread of the group. Off, questions that are nearly always
    or never answered rightly count less (Dr. GRPO)."""

    @model_validator(mode="after")
    def _reward_is_whole(self) -> Grpo:
        check(self.reward, "grpo")
        return self

    def copies(self, *, keeps_base: bool) -> bool:
        return bool(self.kl_weight) and not keeps_base

    def together(self, batch: int) -> int:
        answers, _ = self.drawn(batch)
        return min(self.minibatch or answers, answers)

    def drawn(self, batch: int) -> tuple[int, int]:
        return batch * self.group, self.drawing.max_new_tokens

    def judge(self) -> str:
        return self.reward.judge if self.reward.by == "model" else ""

    def train(self, run: Run, context: Context) -> dict[str, float]:
        from core.training import course
        from core.training.exploring import Policy
        from core.training.judging import judging

        def prepare(model: Any, tokenizer: Any) -> tuple[Any, Policy]:
            model, judge = judging(run, context, model, tokenizer, self.reward)
            return model, Policy(
                tokenizer, judge, run.tuner.keeps_base(), self.drawing.temperature, self.drawing.max_new_tokens,
                self.epochs, self.together(run.training.batch_size), self.clip, self.kl_weight,
                group=self.group, scale=self.scale,
            )  # fmt: skip

        return course.train(run, context, prepare, mask_history=True)
