"""Proximal policy optimization (Schulman et al., arXiv 1707.06347; for language: Ouyang et al., arXiv 2203.02155)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from core.rewards import Drawing, Reward, check
from core.schema import crossed, knob
from core.stages import Stage

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Ppo(Stage):
    """PPO
    Let the model answer, judge its answers, and make good ones likelier, with a value head that foretells what an
    answer will be worth. It goes on from that of the adapter to start from, or of the model, where one lies there:
    of PPO, or of a reward model. One base in memory plays all parts."""

    kind: Literal["ppo"] = "ppo"
    wanted: ClassVar = ("answer",)
    draws: ClassVar = True
    measure: ClassVar = "rewards/mean"
    reward: Reward = knob(Reward())
    """Reward
    What an answer is worth."""
    drawing: Drawing = knob(Drawing())
    """Answers
    How answers are drawn."""
    epochs: int = knob(4, ge=1, le=100)
    """Passes
    How often the answers of a step are learned from before new ones are drawn. Typical: 1 to 4."""
    minibatch: int = knob(0, ge=0, le=4096)
    """Answers a part
    Answers that are learned from at once; fewer take less memory. 0: all of a step."""
    clip: float = knob(0.2, gt=0, lt=1, expert=True)
    """Clipping
    How far the probability of a token may move in one step. Typical: 0.1 to 0.2."""
    kl_weight: float = knob(0.05, ge=0, le=10)
    """Weight of the distance
    How strongly the model is held to what it was. Raise it when rewards rise and answers turn odd. Typical: 0.01 to
    0.2."""
    kl_target: float = knob(0.0, ge=0, le=1000, expert=True)
    """Wanted distance
    Steer the weight so that answers come to this distance (KL, in nats an answer). 0 leaves the weight as it is.
    Typical: 6."""
    normalize: bool = knob(False, expert=True)
    """Normalize rewards
    Bring rewards to mean 0 and spread 1 by all that the run has seen of them so far: for reward models with large or
    shifted numbers."""
    value_weight: float = knob(0.1, gt=0, le=10, expert=True)
    """Weight of the value loss
    How much is learned to foretell rewards beside how to get them. Typical: 0.1 to 0.5."""
    value_clip: float = knob(0.2, gt=0, le=100, expert=True)
    """Clipping of values
    How far a foretold value may move in one step. Typical: 0.2."""
    gamma: float = knob(1.0, gt=0, le=1, expert=True)
    """Discount
    What a reward is worth a token earlier. Typical: 1."""
    lam: float = knob(0.95, ge=0, le=1, expert=True)
    """Lambda
    Of generalised advantage estimation: lower trusts the value head more. Typical: 0.95."""

    @model_validator(mode="after")
    def _reward_is_whole(self) -> Ppo:
        check(self.reward, "ppo")
        if self.kl_target and not self.kl_weight:
            raise crossed("policy.no_weight", "stage.ppo.kl_weight")
        return self

    def copies(self, *, keeps_base: bool) -> bool:
        return bool(self.kl_weight) and not keeps_base

    def together(self, batch: int) -> int:
        return min(self.minibatch or batch, batch)

    def drawn(self, batch: int) -> tuple[int, int]:
        return batch, self.drawing.max_new_tokens

    def judge(self) -> str:
        return self.reward.judge if self.reward.by == "model" else ""

    def train(self, run: Run, context: Context) -> dict[str, float]:
        from core.training import course
        from core.training.exploring import Policy
        from core.training.judging import judging
        from core.training.running import Running

        def prepare(model: Any, tokenizer: Any) -> tuple[Any, Policy]:
            model, judge = judging(run, context, model, tokenizer, self.reward)
            return model, Policy(
                tokenizer, judge, run.tuner.keeps_base(), self.drawing.temperature, self.drawing.max_new_tokens,
                self.epochs, self.together(run.training.batch_size), self.clip, self.kl_weight,
                running=Running() if self.normalize else None, kl_target=self.kl_target, value_weight=self.value_weight,
                value_clip=self.value_clip, gamma=self.gamma, lam=self.lam,
            )  # fmt: skip

        return course.train(run, context, prepare, values=True, mask_history=True)
