"""How many GPUs one engine asks for, read from its own command-line arguments."""

from __future__ import annotations

from collections.abc import Sequence

#: Option of the engine -> the dimension it sizes. Dimensions multiply; the last of one wins.
_DIMENSIONS = {
    "--tensor-parallel-size": "tensor",
    "-tp": "tensor",
    "--pipeline-parallel-size": "pipeline",
    "-pp": "pipeline",
    "--data-parallel-size": "data",
    "-dp": "data",
    "--data-parallel-size-local": "data here",
    "-dpl": "data here",
}


def gpus_wanted(arguments: Sequence[str]) -> int:
    """Number of GPUs that an engine with these arguments uses on this machine; 1 when they do not say.

    Args:
        arguments: already split. ``--option N`` and ``--option=N`` are both understood, and ``_`` for ``-``.

    Raises:
        ValueError: a size is not a whole number of 1 or more, or is missing; the text names the option.
    """
    sizes: dict[str, int] = {}
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option.startswith("--"):
            option = option.replace("_", "-")
        dimension = _DIMENSIONS.get(option)
        if dimension is None:
            continue
        text = value if equals else next(words, "")
        if not (text.isascii() and text.isdigit() and int(text) >= 1):
            raise ValueError(f"{option} needs a whole number of 1 or more after it, not {text!r}")
        sizes[dimension] = int(text)
    data = sizes.get("data here", sizes.get("data", 1))
    return sizes.get("tensor", 1) * sizes.get("pipeline", 1) * data
