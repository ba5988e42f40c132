"""What a run teaches and how: one file, one stage, read top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from core.schema import Spec

if TYPE_CHECKING:
    from core.config import Run
    from core.workspace import Context


class Stage(Spec):
    """A stage of training; `kind` names it."""

    kind: str
    wanted: ClassVar[tuple[str, ...]]
    """The kinds of rows that it learns from (formats.Row.kind)."""
    draws: ClassVar[bool] = False
    """Whether it learns from answers that the model draws itself; then no rows are held out."""

    measure: ClassVar[str] = ""
    """The curve that tells how well a run went, the higher the better; "" where the held-out loss does: one that is
    made alike whatever the settings."""
    answers: ClassVar[bool] = True
    """Whether what it teaches is to answer."""
    heads: ClassVar[bool] = False
    """Whether a value head learns in place of the model's own, beside the weights that processes divide."""

    likelier: ClassVar[tuple[str, ...]] = ()
    """The settings that keep the better answers likely; none where its rewards are no likelihoods."""

    @property
    def in_parts(self) -> bool:
        """Whether all it wants of logits is how likely the learned tokens are: many are then made in parts."""
        return not self.draws

    @property
    def beside_logits(self) -> int:
        """Numbers in fp32 that the loss holds for each logit, at its most, beyond the three of cross-entropy."""
        return 0

    @property
    def paired(self) -> bool:
        """Whether an example is two rows, which packs would not keep together."""
        return self.wanted[0] in ("ranking", "feedback")

    @property
    def rests(self) -> bool:
        """Whether a step may hold nothing but examples of no weight, whose loss is 0."""
        return False

    @property
    def compares(self) -> bool:
        """Whether it compares what the model says with what it says elsewhere, or said before."""
        return self.paired or self.draws

    def together(self, batch: int) -> int:
        """Return how many rows are computed together, and kept until their gradient is known, of such a batch."""
        return 2 * batch if self.wanted == ("ranking",) else batch

    def drawn(self, batch: int) -> tuple[int, int]:
        """Return (how many answers it draws at once to such a batch, tokens of the longest); (0, 0) for none."""
        return 0, 0

    def asks(self, *, keeps_base: bool) -> bool:
        """Return whether the model is asked about all rows before it learns; keeps_base: as for Tuner.keeps_base."""
        return False

    def copies(self, *, keeps_base: bool) -> bool:
        """Return whether a copy of the model stays beside it, as what it was; keeps_base: as for Tuner.keeps_base."""
        return False

    def needs_base(self) -> str:
        """Return the place of the setting that needs the model as it was beside the one that learns; "" for none."""
        return ""

    def masks(self) -> dict[str, bool]:
        """Return the settings that say which tokens of a row are learned, as data.batch.load takes them."""
        return {}

    def judge(self) -> str:
        """Return the run or folder of the reward model that it learns from; "" where there is none."""
        return ""

    def train(self, run: Run, context: Context) -> dict[str, float]:
        """Train as `run` says, write into the run folder, return the final metrics.

        Resumes from the newest good checkpoint in the run folder when there is one.
        """
        raise NotImplementedError
