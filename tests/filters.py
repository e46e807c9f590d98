"""A content filter as a server's owner would write it."""


class NoThirdImage:
    """Remembers what its stream has shown, as a word may come in pieces."""

    def __init__(self) -> None:
        self._text = ""

    def __call__(self, text: str) -> bool:
        self._text += text
        return " image image image" not in self._text
