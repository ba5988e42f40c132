"""Trainer that learns from answers which the model draws itself: one step draws, judges, and learns several times.

Model sharing as in LlamaFactory (arXiv 2403.13372, 4.3): one base in memory is policy, value model, reference and
judge, by its adapters and heads.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from core.data.encode import IGNORED
from core.data.pack import Flat, Padder
from core.errors import InputError
from core.generation import Generation
from core.models import value_head
from core.models.answering import draw, sampling
from core.models.precision import offloading
from core.models.rope import context
from core.training import policy
from core.training.halt import Halt
from core.training.judging import Answer, Judge, told
from core.training.moving import unsettle
from core.training.objective import Batch, Metrics, Seen, look
from core.training.ordered import Ordered
from core.training.policy import Experience, chosen
from core.training.preference import without_adapter
from core.training.running import Running
from core.training.samples import Drawn, answering

STATE = "policy.json"


@dataclass
class Policy:
    """How to learn from one's own answers. `group` > 1: GRPO, else PPO."""

    tokenizer: PreTrainedTokenizerBase
    judge: Callable[[Answer], float] | Judge
    keeps_base: bool
    """Whether the model without its adapter is the reference; else a copy of it is kept."""
    temperature: float
    max_new_tokens: int
    epochs: int
    minibatch: int
    clip: float
    kl_weight: float
    group: int = 1
    scale: bool = True
    running: Running | None = None
    """What scores are brought to mean 0 and spread 1 by; None where they stay as they are."""
    kl_target: float = 0.0
    value_weight: float = 0.0
    value_clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    per_token = False
    paired = False
    asks = False
    reference: Any = field(default=None, repr=False)

    @property
    def refers(self) -> bool:
        """Whether there is a reference: always where it needs no copy, else where it is wanted."""
        return self.keeps_base or bool(self.kl_weight)

    def __call__(self, model: Any, batch: Batch, count: torch.Tensor | None) -> tuple[torch.Tensor, Metrics]:
        raise NotImplementedError("a policy learns from what it draws: Exploring")


class Exploring(Ordered):
    """Ordered, for a Policy."""

    objective: Policy
    drawn: Drawn | None = None

    def __init__(self, *, rows: Flat | Padder, halt: Halt, **given: Any) -> None:
        super().__init__(**given)
        self.rows, self.halt = rows, halt
        self.add_callback(halt)
        self.args.include_num_input_tokens_seen = "no"
        if not self.objective.keeps_base and self.objective.kl_weight:
            self.objective.reference = copy.deepcopy(cast(PreTrainedModel, self.model)).eval().requires_grad_(False)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Draw and judge answers, learn from them in parts; the last step of the optimizer is left to Trainer."""
        unsettle(self.optimizer)
        with self.halt.going_back(self), self.compute_loss_context_manager():
            seen = self._explore(cast(Any, self.model), inputs)
        model.train()
        parts = list(self._parts(len(seen.rows)))
        losses = []
        for number, part in enumerate(parts):
            self.halt.look(self.halt.patience)
            with self.compute_loss_context_manager():
                loss = self._loss(model, seen, part)
            self.accelerator.backward(loss)
            losses.append(loss.detach())
            if number + 1 < len(parts):
                if self.args.max_grad_norm:
                    self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
                cast(torch.optim.Optimizer, self.optimizer).step()
                model.zero_grad()
        (a_process,) = self.team.means([float(sum(len(row["input_ids"]) for row in seen.rows))])
        self.state.num_input_tokens_seen += round(a_process * self.team.size)
        return torch.stack(losses).mean()

    def _explore(self, model: Any, asked: dict[str, Any]) -> Experience:
        """Return answers to the questions, judged, with what each token is worth."""
        own = self.objective
        prompts = [prompt for prompt in asked["prompt"] for _ in range(own.group)]
        wanted = [answer for answer in asked["answer"] for _ in range(own.group)]
        model.eval()
        answers, ended = self._draw(model, prompts)
        rows = [_row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        with torch.no_grad():
            scores_B = self._judge(rows, answers, wanted)
            seen = self._look(model, rows, scores_B)
        if own.group > 1:
            policy.compare(seen, own.group, scale=own.scale)
        else:
            if own.running:
                own.running.add(scores_B)
                seen.scores_B = own.running.scaled(scores_B)
            policy.credit(seen, own.kl_weight, own.gamma, own.lam, self.team)
        self._tell(seen, scores_B, answers, ended)
        if self.drawn:
            self.drawn.show(self, rows[:: own.group], asked["answer"], scores_B[:: own.group].tolist())
        return seen

    def _draw(self, model: Any, prompts: Sequence[list[int]]) -> tuple[list[list[int]], list[bool]]:
        """Return (an answer to each prompt, its end token included where it came to one; whether it came to one)."""
        own = self.objective
        longest = context(model.config) - max(map(len, prompts))
        if longest < 1:
            raise InputError("data.no_room", "data.cutoff", context=context(model.config))
        wish = Generation(max_new_tokens=min(own.max_new_tokens, longest), temperature=own.temperature)
        settings = sampling(wish, model, own.tokenizer)
        with answering(model), _plainly(model):
            drawn = draw(model, prompts, settings, self.halt.watch.context.stop).tolist()
        self.halt.look()
        ends = set(cast(list[int], settings.eos_token_id))
        answers = [_until(answer, ends) for answer in drawn]
        return answers, [answer[-1] in ends for answer in answers]

    def _judge(self, rows: list[dict], answers: Sequence[list[int]], wanted: Sequence[list[int]]) -> torch.Tensor:
        """Return the worth of each answer."""
        own = self.objective
        if isinstance(own.judge, Judge):
            parts = [own.judge(self._batch(rows[at : at + own.minibatch])) for at in range(0, len(rows), own.minibatch)]
            return torch.cat(parts).float()
        said = [told(own.tokenizer, answer, right) for answer, right in zip(answers, wanted, strict=True)]
        return torch.tensor([own.judge(answer) for answer in said], device=self.args.device)

    def _look(self, model: Any, rows: list[dict], scores_B: torch.Tensor) -> Experience:
        """Return the answers with what policy, reference and value head say of each of their tokens."""
        own = self.objective
        seen = Experience(rows, scores_B, [], [], torch.zeros(()), [] if own.value_weight else None)
        entropies = []
        for at in range(0, len(rows), own.minibatch):
            self.halt.look()
            batch = self._batch(rows[at : at + own.minibatch])
            found = look(model, batch, value_head.attached(model))
            logps = self._logps(found)
            seen.logps += logps
            if own.refers:
                seen.reference += self._logps(self._refer(model, batch))
            entropies.append(policy.entropy(self._drawable(found), own.temperature) * len(found.row_K))
            if seen.values is not None:
                seen.values += policy.by_row(cast(torch.Tensor, found.value_K), found.row_K, found.rows)
        seen.entropy = torch.stack(entropies).sum() / sum(map(len, seen.logps))
        return seen

    def _refer(self, model: Any, batch: Batch) -> Seen:
        """Return what the model before training makes of a batch."""
        if self.objective.reference is not None:
            return look(self.objective.reference, batch)
        with without_adapter(model):
            return look(model, batch)

    def _drawable(self, found: Seen) -> torch.Tensor:
        """Return the logits of tokens: rows that no token has are never drawn (answering.sampling)."""
        return found.logits_K_V[:, : len(self.objective.tokenizer)]

    def _logps_K(self, found: Seen) -> torch.Tensor:
        return policy.probabilities(self._drawable(found), found.targets_K, self.objective.temperature)

    def _logps(self, found: Seen) -> policy.Parts:
        return policy.by_row(self._logps_K(found), found.row_K, found.rows)

    def _loss(self, model: Any, seen: Experience, part: Sequence[int]) -> torch.Tensor:
        """Return the loss over some of the answers."""
        own = self.objective
        with offloading(model) if self.offload else nullcontext():
            found = look(model, self._batch([seen.rows[index] for index in part]), value_head.attached(model))
        logps_K = self._logps_K(found)
        old_K, advantages_K = chosen(seen.logps, part), chosen(cast(policy.Parts, seen.advantages), part)
        loss_K, clipped_K = policy.clipped(logps_K, old_K, advantages_K, own.clip)
        told_: Metrics = {"policy/clipped": clipped_K.float().mean()}
        if own.group > 1:
            if own.kl_weight:
                loss_K = loss_K + own.kl_weight * policy.divergence(logps_K, chosen(seen.reference, part))
            loss = torch.stack([row.mean() for row in policy.by_row(loss_K, found.row_K, found.rows)]).mean()
        else:
            loss = loss_K.mean()
        if seen.values is not None and seen.returns is not None:
            of_values = policy.value_loss(
                cast(torch.Tensor, found.value_K), chosen(seen.values, part), chosen(seen.returns, part), own.value_clip
            )
            told_["policy/value_loss"] = of_values.detach()
            loss = (loss + own.value_weight * of_values) * self._share(len(loss_K))
        if self.router_aux_loss:
            loss = loss + self.router_aux_loss * cast(torch.Tensor, found.aux_loss)
        self.metrics[True].append(told_)
        return loss

    def _share(self, tokens: int) -> float:
        """Return by what a mean over so many tokens is multiplied, so that those of all processes make one mean."""
        return tokens / self.team.means([float(tokens)])[0]

    def _parts(self, rows: int) -> Sequence[list[int]]:
        """Return the answers in parts, in another order in each epoch, the same for the same step and seed."""
        own = self.objective
        chance = torch.Generator().manual_seed(self.args.seed + self.state.global_step)
        orders = [torch.randperm(rows, generator=chance).tolist() for _ in range(own.epochs)]
        return [order[at : at + own.minibatch] for order in orders for at in range(0, rows, own.minibatch)]

    def _tell(
        self, seen: Experience, scores_B: torch.Tensor, answers: Sequence[list[int]], ended: Sequence[bool]
    ) -> None:
        """Note the curves, and steer the weight of the divergence where that is wanted."""
        own = self.objective
        lengths = torch.tensor([float(len(answer)) for answer in answers])
        exact_B = scores_B.double()
        mean, square = self.team.means([float(exact_B.mean()), float(exact_B.square().mean())])
        self.metrics[True].append({
            "rewards/mean": scores_B.mean(), "rewards/std": torch.tensor(max(square - mean**2, 0.0) ** 0.5),
            "objective/entropy": seen.entropy, "answers/length": lengths.mean(),
            "answers/ended": torch.tensor(ended).float().mean(),
        })  # fmt: skip
        if not own.refers:
            return
        self.metrics[True][-1]["objective/kl"] = distance = seen.distance_B.mean()
        if own.kl_target:
            self.metrics[True][-1]["objective/kl_weight"] = torch.tensor(own.kl_weight)
            (of_all,) = self.team.means([float(distance)])
            own.kl_weight = policy.steered(own.kl_weight, of_all, own.kl_target, len(answers) * self.team.size)

    def _batch(self, rows: Sequence[dict]) -> Batch:
        return cast(Batch, self._prepare_inputs(self.rows(rows)))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            Path(cast(str, output_dir), STATE).write_text(json.dumps({"kl_weight": self.objective.kl_weight}))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        kept = json.loads(Path(resume_from_checkpoint, STATE).read_text())
        self.objective.kl_weight = float(kept["kl_weight"])


@contextmanager
def _plainly(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Let a model draw by the settings of the run alone.

    What its generation_config.json has beside (min_p, suppress_tokens, bad words, least lengths) would give tokens
    other probabilities than those that are learned from.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def _row(prompt: list[int], answer: list[int]) -> dict[str, Any]:
    """Return a question with its answer as a collator takes it."""
    labels = [IGNORED] * len(prompt) + answer
    return {"input_ids": np.array(prompt + answer), "labels": np.array(labels)}


def _until(answer: list[int], ends: set[int]) -> list[int]:
    """Return an answer up to its end token."""
    at = next((number for number, token in enumerate(answer) if token in ends), len(answer) - 1)
    return answer[: at + 1]
