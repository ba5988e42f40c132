"""Conversations as a list of messages: OpenAI's names, and ShareGPT's, which differ in nothing else."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from core.formats import Format, Line, Message, rows_of, text


class OpenAI(Format):
    """{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}"""

    kind: Literal["openai"] = "openai"
    mark: ClassVar[str] = "messages"
    messages: str = "messages"
    system: str = "system"
    role_tag: str = "role"
    content_tag: str = "content"
    user_tag: str = "user"
    assistant_tag: str = "assistant"
    system_tag: str = "system"
    observation_tag: str = "tool"
    function_tag: str = "function_call"

    def conversation(self, row: dict[str, Any], line: Line) -> list[Message]:
        messages = [self._message(item, line) for item in rows_of(row, self.messages, line)]
        if messages[0]["role"] != "system" and (system := text(row, self.system, line, optional=True)):
            messages.insert(0, {"role": "system", "content": system})
        turns = messages[messages[0]["role"] == "system" :]
        for index, message in enumerate(turns):
            expected = ("user", "assistant")[index % 2]
            if message["role"] != expected:
                raise line.error("data.role_order", position=index + 1, role=message["role"], expected=expected)
        if len(turns) % 2 or not turns:
            raise line.error("data.no_answer", column=self.messages)
        return messages

    def _message(self, item: Any, line: Line) -> Message:
        if not isinstance(item, dict):
            raise line.error("data.not_message", column=self.messages)
        roles = {self.user_tag: "user", self.assistant_tag: "assistant", self.system_tag: "system"}
        given = text(item, self.role_tag, line)
        if given in (self.observation_tag, self.function_tag):
            raise line.error("data.tool_role", role=given)
        if given not in roles:
            raise line.error("data.role", role=given[:40], known=", ".join(roles))
        return {"role": roles[given], "content": text(item, self.content_tag, line)}


class ShareGPT(OpenAI):
    """{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}"""

    kind: Literal["sharegpt"] = "sharegpt"
    mark: ClassVar[str] = "conversations"
    messages: str = "conversations"
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
