"""Rows to texts by a chat template, with the spans that are answers: what the model is to write itself.

For templates with {% generation %} marks these tell the spans. For others the template is asked twice, for the
conversation up to a question with the header of the next answer, and up to that answer: it spans the difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from jinja2.exceptions import TemplateError
from rapidfuzz.distance import Prefix
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from core.data.places import Placeholders, laid_out, placed, unplaced
from core.errors import InputError
from core.formats import Message, Row

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
SEAM = "\ufdd0"
"""Set between the characters of a control token that somebody typed: no token reaches across it, and tokens.py takes
it out. A noncharacter of Unicode, which no text may have (formats.UNFIT)."""
TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
"""What a template raises: its own refusals, mistakes of its author, and the sandbox that it runs in."""
THOUGHT = "<think>", "</think>"
THINKING: dict[str, dict[str, bool]] = {
    "auto": {},
    "think": {"enable_thinking": True},
    "answer": {"enable_thinking": False},
    "keep": {"enable_thinking": True, "preserve_thinking": True, "clear_thinking": False},
}
"""What templates are told; each takes the names it knows."""

Span = tuple[int, int]
"""First character and the one after the last."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A text that becomes a row of tokens, the spans of it that are learned, and whether it was typed as it stands."""

    text: str
    spans: list[Span]
    plain: bool = False
    turns: int | None = None
    """How many messages of the row are in it; None: all."""


class Renderer:
    """Renders rows with the chat template of a tokenizer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        thinking: str = "auto",
        mask_history: bool = False,
        placeholders: Placeholders = dict,
    ) -> None:
        self.template = tokenizer.get_chat_template()
        self.tokenizer, self.thinking, self.mask_history = tokenizer, thinking, mask_history
        self.placeholders = placeholders
        self.options = {**tokenizer.special_tokens_map, **THINKING[thinking], "chat_template": self.template}
        added = tokenizer.added_tokens_decoder.values()
        tokens = sorted({token.content for token in added}, key=len, reverse=True)
        self.tokens = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
        self.controls = controls(tokenizer)
        self.escaped = 0
        """Messages in which a control token was typed."""

    def pieces(self, rows: Sequence[Row], answer: int = 0) -> list[list[Piece]]:
        """Return the pieces of each row: one, or one for each answer where the template rewrites earlier ones.

        `answer`: which response is meant, of a comparison. Raises InputError when the template refuses a row.
        """
        made: list[list[Piece]] = []
        for (plain, tools), group in groupby(rows, key=lambda row: (row.plain, row.tools)):
            if plain:
                made += [[self._plain(row)] for row in group]
                continue
            chats = [self._prepared(placed(row.messages(answer), row.media)) for row in group]
            tools = escaped(tools, self.controls) or None
            found = self._by_marks(chats, tools) if MARK.search(self.template) else self._by_prefix(chats, tools)
            for own, messages in zip(found, chats, strict=True):
                self._check_whole(own, messages, tools or [])
            made += found
        return made

    def _check_whole(self, pieces: list[Piece], messages: list[Message], tools: list[Any]) -> None:
        """Raise InputError when the template leaves out a tool, a call or a thought: silence would be learned."""
        offered = [tool.get("function", tool) for tool in tools]
        called = [call["function"] for message in messages for call in message.get("tool_calls", [])]
        for function in [*offered, *called]:
            name = json.dumps(str(function.get("name", "") if isinstance(function, dict) else ""), ensure_ascii=False)
            said = sum(str(message["content"]).count(name[1:-1]) for message in messages)
            if not any(piece.text.count(name[1:-1]) > said for piece in pieces):
                raise InputError("data.template_tools", "data.template", name=name[1:-1][:80])
        thought = str(messages[-1].get("reasoning_content", "")).strip()
        if thought and not any(thought in piece.text for piece in pieces):
            raise InputError("data.template_thoughts", "data.template", text=thought[:80])

    def _plain(self, row: Row) -> Piece:
        """A text is learned whole, with the end token behind it, so that the model learns to stop."""
        text = str(row.response[0]["content"]) + str(self.tokenizer.eos_token)
        return Piece(text, [(0, len(text))], plain=True)

    def _prepared(self, messages: list[Message]) -> list[Message]:
        """Return messages for the template: control tokens escaped, thoughts left out where they are not wanted."""
        made: list[Message] = []
        for message in messages:
            fresh = escaped(message, self.controls)
            self.escaped += fresh != message
            if fresh["role"] == "assistant" and self.thinking == "answer":
                fresh.pop("reasoning_content", None)
                fresh["content"] = _thoughtless(str(fresh["content"]))
            made.append(fresh)
        return made

    def _learned(self, messages: list[Message]) -> list[int]:
        """Return the positions of the answers that are to be learned."""
        answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        answers = answers[-1:] if self.mask_history else answers
        return [i for i in answers if messages[i].get("weight", 1) and _says(messages[i])]

    def _by_marks(self, chats: list[list[Message]], tools: Any) -> list[list[Piece]]:
        texts, spans = self._render(chats, tools, return_assistant_tokens_mask=True)
        made: list[list[Piece]] = []
        for text, marked, messages in zip(texts, spans, chats, strict=True):
            answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
            learned = self._learned(messages)
            if learned == answers:
                made.append([Piece(text, marked)])
            elif len(marked) == len(answers):
                chosen = [span for span, i in zip(marked, answers, strict=True) if i in learned]
                made.append([Piece(text, chosen)])
            else:  # the template marks parts of answers, or stretches over several: which is which can't be told
                made += self._by_prefix([messages], tools)
        return made

    def _by_prefix(self, chats: list[list[Message]], tools: Any) -> list[list[Piece]]:
        turns = [(messages, i) for messages in chats for i in self._learned(messages)]
        texts, _ = self._render(chats, tools)
        heads, _ = self._render([messages[:i] for messages, i in turns], tools, add_generation_prompt=True)
        earlier = [messages[: i + 1] for messages, i in turns if i + 1 < len(messages)]
        wholes = iter(self._render(earlier, tools)[0])
        found = iter(heads)
        made: list[list[Piece]] = []
        for text, messages in zip(texts, chats, strict=True):
            own: list[tuple[str, Span]] = []
            for i, head in zip(learned := self._learned(messages), islice(found, len(learned)), strict=True):
                whole = text if i + 1 == len(messages) else next(wholes)
                own.append((whole, (self._begin(head, whole, messages[: i + 1]), len(whole))))
            together = [self._in(text, whole, span) for whole, span in own]
            if all(together):
                made.append([Piece(text, [span for span in together if span])])
            else:
                turns = (i + 1 for i in learned)
                made.append([Piece(whole, [span], turns=n) for (whole, span), n in zip(own, turns, strict=True)])
        return made

    def _begin(self, head: str, whole: str, messages: list[Message]) -> int:
        """Return where the last answer begins; templates may ask with words (<think>) that a given answer lacks."""
        if whole.startswith(head):
            return len(head)
        begin = self._shared(head, whole)
        *before, answer = messages
        asked = unplaced(str(before[-1]["content"])).strip() if before else ""
        if asked not in whole[:begin]:
            raise InputError("data.template_prefix", "model.path", turn=len(messages), text=asked[:80])
        # the answer may begin like the words that are left out: "<b>" like "<think>"
        said = str(answer["content"]).strip()
        earlier = range(begin, max(begin - len(THOUGHT[0]), 0), -1)
        return next((at for at in earlier if said and whole.startswith(said, at)), begin)

    def _in(self, text: str, whole: str, span: Span) -> Span | None:
        """Return the span of an answer in the text of the whole conversation; None where it is written differently."""
        if text.startswith(whole):
            return span
        end = self._shared(text, whole)
        if end <= span[0] or self.tokens.sub("", whole[end:]).strip():
            return None
        # some templates end a conversation with a token of its own, behind that of the turn or in its place
        ended = any(token.end() == len(text[:end].rstrip()) for token in self.tokens.finditer(text, span[0], end))
        instead = None if ended else self.tokens.match(text, end)
        return span[0], instead.end() if instead else end

    def _shared(self, text: str, other: str) -> int:
        """Return how many first characters two texts share, without a part of a token that stands across the end."""
        length = Prefix.similarity(text, other)
        for token in self.tokens.finditer(other, max(0, length - 64), length + 64):
            if token.start() < length < token.end():
                return token.start()
        return length

    def _render(self, chats: list[list[Message]], tools: Any, **options: Any) -> tuple[list[str], list[list[Span]]]:
        """Return the texts and, if asked for, the marked spans, by the sandboxed renderer behind apply_chat_template.

        apply_chat_template itself gives a mask of tokens, and loses every answer after one that begins with a blank.
        """
        try:
            laid = [laid_out(chat, self.template, self.placeholders) for chat in chats]
            made: Any = render_jinja_template(laid, tools=tools, **self.options, **options)  # annotated wrongly
        except TEMPLATE_FAULTS as error:
            if len(chats) > 1:
                for chat in chats:  # which of them is it?
                    self._render([chat], tools, **options)
            text = str(chats[0][-1]["content"])[:80] if chats[0] else ""
            raise InputError("data.template", "model.path", what=str(error)[:200], text=text) from None
        return made


def controls(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return what finds the control tokens of a tokenizer in a text."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found)) or r"(?!)")


def escaped(value: Any, found: re.Pattern[str]) -> Any:
    """Return a value in which no text has a control token: a SEAM stands in each."""
    if isinstance(value, str):
        return found.sub(lambda token: token[0][:1] + SEAM + token[0][1:], value)
    if isinstance(value, list):
        return [escaped(item, found) for item in value]
    if isinstance(value, dict):
        return {escaped(key, found): escaped(item, found) for key, item in value.items()}
    return value


def _thoughtless(content: str) -> str:
    """Return an answer without the thought in it."""
    before, opened, rest = content.partition(THOUGHT[0])
    _, closed, after = rest.partition(THOUGHT[1])
    return before.rstrip() + after.lstrip() if opened and closed else content


def _says(message: Message) -> bool:
    """Return whether an answer has anything to learn: an empty one would only teach to be silent."""
    content = str(message["content"]).strip()
    return bool(content or message.get("tool_calls") or message.get("reasoning_content"))
