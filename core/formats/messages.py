"""Conversations as a list of messages: OpenAI's names, and ShareGPT's, which differ in nothing else."""

from __future__ import annotations

from typing import Any, Literal

from core.formats import Format, Line, Message, Raw, Row, inner, items, text, type_name

NEXT = {
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Who may speak after whom; a tool only after an assistant has called it."""


class OpenAI(Format):
    """{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}

    An assistant may have tool_calls, reasoning_content, and weight 0 for a turn that is not to be learned.
    """

    kind: Literal["openai"] = "openai"
    messages: str = "messages"
    role_tag: str = "role"
    content_tag: str = "content"
    user_tag: str = "user"
    assistant_tag: str = "assistant"
    system_tag: str = "system"
    observation_tag: str = "tool"
    function_tag: str = "function_call"

    def row(self, raw: Raw, line: Line) -> Row:
        turns, system = self.turns(raw, self.messages, line)
        if self.ranking:
            if not turns or turns[-1]["role"] not in ("user", "tool"):
                raise line.error("data.no_question", column=self.messages)
            return self.built(raw, line, turns, self.pair(raw, line), system)
        if not turns or turns[-1]["role"] != "assistant":
            raise line.error("data.no_answer", column=self.messages)
        return self.built(raw, line, turns[:-1], turns[-1:], system)

    def turns(self, raw: Raw, column: str, line: Line) -> tuple[list[Message], str]:
        """Return (the turns in a column, in a possible order; the system message before them or "")."""
        turns = [self.message(item, column, line) for item in items(raw, column, line)]
        system = str(turns.pop(0)["content"]) if turns[0]["role"] == "system" else ""
        before = ""
        for position, message in enumerate(turns, 1):
            role = message["role"]
            if role not in NEXT[before] or (role == "tool" and before == "assistant" and not calls(turns, position)):
                expected = " | ".join(NEXT[before])
                raise line.error("data.role_order", position=position, role=role, expected=expected)
            before = role
        return turns, system

    def answer(self, raw: Raw, column: str, line: Line) -> Message:
        """Return an answer that is a text, a message, or a list of one message."""
        value = raw.get(column)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, dict):
            return super().answer(raw, column, line)
        message = self.message(value, column, line)
        if message["role"] != "assistant":
            raise line.error("data.no_answer", column=column)
        return message

    def message(self, item: Any, column: str, line: Line) -> Message:
        """Return one message in the standard words."""
        if not isinstance(item, dict):
            raise line.error("data.not_message", column=column)
        roles = {
            self.user_tag: "user", self.assistant_tag: "assistant", self.system_tag: "system",
            self.observation_tag: "tool", self.function_tag: "function", "developer": "system",
        }  # fmt: skip
        given = text(item, self.role_tag, line)
        if given not in roles:
            raise line.error("data.role", role=given[:40], known=", ".join(roles))
        if roles[given] == "function":
            return {
                "role": "assistant",
                "content": "",
                "tool_calls": _calls_in(text(item, self.content_tag, line), line),
            }
        message: Message = {"role": roles[given], "content": self._content(item, line)}
        if roles[given] == "assistant":
            message |= _extras(item, line)
        if roles[given] == "tool":
            message |= {key: text(item, key, line) for key in ("tool_call_id", "name") if item.get(key) is not None}
        return message

    def _content(self, item: dict[str, Any], line: Line) -> str:
        """Return the text of a message; a list of parts is joined, media parts become their markers."""
        content = item.get(self.content_tag)
        if not isinstance(content, list):
            return text(item, self.content_tag, line, optional=bool(item.get("tool_calls")))
        said: list[str] = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                said.append(text(part, "text", line))
            elif kind in ("image", "video", "audio"):
                said.append(f"<{kind}>")
            else:
                raise line.error("data.part", column=self.content_tag, found=str(kind or type_name(part))[:40])
        return "".join(said)


class ShareGPT(OpenAI):
    """{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}"""

    kind: Literal["sharegpt"] = "sharegpt"
    messages: str = "conversations"
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"


def calls(turns: list[Message], position: int) -> bool:
    """Return whether the turn before this position (counted from 1) calls a tool."""
    return bool(turns[position - 2].get("tool_calls"))


def _extras(item: dict[str, Any], line: Line) -> Message:
    """Return what an assistant's message has beside its content."""
    found: Message = {}
    if item.get("tool_calls"):
        found["tool_calls"] = _calls(item["tool_calls"], line)
    for key in ("reasoning_content", "thinking"):  # the names in use for the same
        if item.get(key):
            found["reasoning_content"] = text(item, key, line)
    if item.get("weight") is not None:
        if item["weight"] not in (0, 1) or isinstance(item["weight"], bool):
            raise line.error("data.weight", found=str(item["weight"])[:40])
        found["weight"] = int(item["weight"])
    return found


def _calls_in(said: str, line: Line) -> list[dict[str, Any]]:
    """Return the tool calls in a ShareGPT function_call: the JSON text of one call or a list of them."""
    given = inner(said, "function_call", line)
    return _calls(given if isinstance(given, list) else [given], line)


def _calls(given: Any, line: Line) -> list[dict[str, Any]]:
    """Return tool calls in the shape that chat templates know: arguments are an object, not its JSON text."""
    if not isinstance(given, list) or not all(isinstance(call, dict) for call in given):
        raise line.error("data.tools_json", column="tool_calls", what=type_name(given))
    found: list[dict[str, Any]] = []
    for call in given:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise line.error("data.tools_json", column="tool_calls", what="name")
        asked = inner(function.get("arguments") or {}, "arguments", line)
        arguments = {} if asked is None else asked
        if not isinstance(arguments, dict):
            raise line.error("data.tools_json", column="arguments", what=f"{type_name(arguments)} ≠ object")
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        function = {"name": function["name"], "arguments": arguments}
        found.append({**identity, "type": "function", "function": function})
    return found
