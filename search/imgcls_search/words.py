"""Numbers with their words."""


def counted(word: str, count: int) -> str:
    """Return a number with its word: `1 image`, `2 classes`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}{'es' if word.endswith('s') else 's'}"
