"""The command line of a server that the user chose: placeholders filled in, nothing else touched."""

from __future__ import annotations

from gpuward_ipc.startup import EngineSpec


def argv(spec: EngineSpec, gpus: tuple[int, ...]) -> list[str]:
    """The user's arguments with the placeholders of ``EngineSpec.command`` filled in.

    Other braces stay as they are: arguments often hold JSON.

    Args:
        spec: the engine, with the user's argument list.
        gpus: indices of the executor's GPUs; ``{gpus}`` becomes ``0,1``.
    """
    values = {
        "{host}": spec.host,
        "{port}": str(spec.port),
        "{model}": spec.model,
        "{served_model_name}": spec.served_model_name,
        "{gpus}": ",".join(str(gpu) for gpu in gpus),
    }
    filled: list[str] = []
    for argument in spec.command:
        for placeholder, value in values.items():
            argument = argument.replace(placeholder, value)
        filled.append(argument)
    return filled
