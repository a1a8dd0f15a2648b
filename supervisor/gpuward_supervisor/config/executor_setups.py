"""The executors of a node, made of tables and places: names, slots, ports, engines; nothing twice."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import msgspec

from gpuward_ipc import endpoints
from gpuward_ipc.startup import EngineKind, EngineSpec
from gpuward_ipc.types import ExecutorName
from gpuward_supervisor.config.findings import Findings
from gpuward_supervisor.config.node import ExecutorSetup
from gpuward_supervisor.config.parallelism import gpus_wanted
from gpuward_supervisor.config.placement import Place, Placing
from gpuward_supervisor.config.problems import Path
from gpuward_supervisor.config.schema import ConfigFile, EngineTable, ExecutorTable, Words
from gpuward_supervisor.secrets import is_secret_name

#: Variables that the supervisor sets for an executor, so that nobody else may.
_RESERVED = frozenset({
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "TMPDIR",
    endpoints.ENV_EXECUTOR, endpoints.ENV_NODE, endpoints.ENV_LINK, endpoints.ENV_CONFIG,
    endpoints.ENV_DEATH_FD, endpoints.ENV_PARENT,
})  # fmt: skip
#: Options of vLLM that the executor gives itself, or cannot live with, and what to do instead.
_OWN_OPTIONS = {
    "--host": "the engine is looked for at executors.engine.host (VLLM_HOST); set that instead",
    "--port": "the engine is looked for at a port from executors.port_base (VLLM_PORT) on; set that instead",
    "--served-model-name": "requests carry executors.engine.served_model_name (VLLM_SERVED_MODEL_NAME); "
    "set that instead",
    "--api-key": "the engine would refuse its own executor; leave it out",
}


class _Draft(msgspec.Struct, kw_only=True):
    """An executor on its way."""

    table: ExecutorTable
    place: Place
    engine: EngineTable
    extra_args: tuple[str, ...]
    command: tuple[str, ...]
    path: Path
    name: str = ""
    slots: int = 1
    port: int = 0


def executor_setups(
    config: ConfigFile, tree: dict[str, Any], placing: Placing, findings: Findings
) -> tuple[tuple[ExecutorSetup, ...], int | None]:
    """Make the executors.

    Args:
        config: the file's content, with the environment over it.
        tree: the same as plain values, to tell a key that was written from one that was not.
        placing: shares the GPUs out.
        findings: gets problems and warnings.

    Returns:
        The executors, and the most jobs the node may be offered at once, None for the sum of their slots.
    """
    drafts = (
        _listed(config, tree, placing, findings)
        if config.executor
        else _automatic(config, tree, placing, findings)
    )
    _name(drafts, findings)
    capacity_max = _share_slots(config, drafts, findings)
    _set_ports(config, drafts, findings)
    _refuse_shared_gpus(drafts, findings)
    _check_environment(config.executors.environment, ("executors", "environment"), findings)
    for draft in drafts:
        if draft.path[0] == "executor":
            _check_environment(draft.table.environment, (*draft.path, "environment"), findings)
    return tuple(_setup(config, draft) for draft in drafts), capacity_max


# ---------------------------------------------------------------- drafts


def _automatic(
    config: ConfigFile, tree: dict[str, Any], placing: Placing, findings: Findings
) -> list[_Draft]:
    path: Path = ("executors",)
    engine = config.executors.engine
    keys = _EngineKeys(path, frozenset(), inherits=False)
    extra_args, command = _engine_words(engine, keys, findings)
    wanted = _wanted(engine.kind, extra_args, keys, findings)
    if findings.refused(("executors", "gpus")):
        return []
    chosen = "gpus" in tree.get("executors", {})
    return [
        _Draft(
            table=ExecutorTable(),
            place=place,
            engine=engine,
            extra_args=extra_args,
            command=command,
            path=path,
        )
        for place in placing.automatic(config.executors, engine.kind, wanted, chosen=chosen)
    ]


def _listed(config: ConfigFile, tree: dict[str, Any], placing: Placing, findings: Findings) -> list[_Draft]:
    for key in ("gpus", "count", "gpus_per_executor"):
        if key in tree.get("executors", {}):
            findings.refuse(
                ("executors", key),
                tree["executors"][key],
                "cannot stand beside [[executor]] tables, which list every executor with its GPUs",
                "remove the one or the other",
            )
    common = tree.get("executors", {}).get("engine", {})
    drafts = []
    for number, table in enumerate(config.executor):
        path: Path = ("executor", number)
        own = tree["executor"][number].get("engine", {})
        engine = msgspec.convert({**common, **own}, EngineTable)
        keys = _EngineKeys(path, frozenset(own), inherits=True)
        extra_args, command = _engine_words(engine, keys, findings)
        wanted = _wanted(engine.kind, extra_args, keys, findings)
        gpus_path = (*path, "gpus")
        if findings.refused(gpus_path):
            continue
        place: Place | None
        match table.gpus:
            case None:
                place = placing.unnamed(gpus_path, engine.kind)
            case "none":
                place = placing.without_gpu(gpus_path)
            case names:
                place = placing.listed(names, gpus_path, engine.kind, wanted)
        if place is not None:
            drafts.append(
                _Draft(
                    table=table, place=place, engine=engine, extra_args=extra_args, command=command, path=path
                )
            )
    return drafts


class _EngineKeys(msgspec.Struct, frozen=True):
    """Where the keys of one executor's engine were written: with the executor, or once for all of them."""

    executor: Path
    own: frozenset[str]
    inherits: bool

    def path(self, key: str) -> Path:
        """Path of an engine key."""
        if self.inherits and key not in self.own:
            return ("executors", "engine", key)
        return (*self.executor, "engine", key)


def _engine_words(
    engine: EngineTable, keys: _EngineKeys, findings: Findings
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    extra_args = _split(engine.extra_args, keys.path("extra_args"), findings)
    command_path = keys.path("command")
    command = _split(engine.command, command_path, findings)
    if engine.kind is EngineKind.COMMAND and not command and not findings.refused(command_path):
        findings.refuse(
            command_path,
            None,
            'expected the program and its arguments, as kind = "command" has no other',
            'for example command = ["my-server", "--port", "{port}"]',
        )
    if engine.kind is not EngineKind.COMMAND and command:
        findings.warn(
            f'{findings.name_of(command_path)} has no effect: kind is "{engine.kind}", not "command"'
        )
    if engine.kind is EngineKind.VLLM:
        _point_out_own_options(extra_args, findings.name_of(keys.path("extra_args")), findings)
    return extra_args, command


def _point_out_own_options(extra_args: Sequence[str], name: str, findings: Findings) -> None:
    """An option that is given twice counts as it was given last: the engine would not be what is expected."""
    for word in extra_args:
        option = word.partition("=")[0].replace("_", "-")
        if option in _OWN_OPTIONS:
            findings.warn(f"{name} has {option}: {_OWN_OPTIONS[option]}")


def _split(words: Words, path: Path, findings: Findings) -> tuple[str, ...]:
    if isinstance(words, tuple):
        return words
    try:
        return tuple(shlex.split(words))
    except ValueError as error:
        if not findings.refused(path):
            findings.refuse(
                path,
                words,
                f"cannot be split into arguments as a shell would: {str(error).lower()}",
                "close the quote, or put a backslash before a quote that is meant",
            )
        return ()


def _wanted(kind: EngineKind, extra_args: Sequence[str], keys: _EngineKeys, findings: Findings) -> int:
    if kind is EngineKind.COMMAND:
        return 1  # another program's arguments may mean anything
    try:
        return gpus_wanted(extra_args)
    except ValueError as error:
        path = keys.path("extra_args")
        if not findings.refused(path):
            findings.refuse(path, shlex.join(extra_args), str(error))
        return 1


# ---------------------------------------------------------------- names, slots, ports, GPUs


def _name(drafts: list[_Draft], findings: Findings) -> None:
    taken: dict[str, _Draft] = {}
    for draft in drafts:
        if draft.table.name is not None:
            draft.name = draft.table.name
            if draft.name in taken:
                findings.refuse(
                    (*draft.path, "name"),
                    draft.name,
                    "expected a name that no other executor has",
                    "rename one of them",
                )
            taken[draft.name] = draft
    for draft in drafts:
        if not draft.name:
            draft.name = _free_name(draft.place.label, taken)
            taken[draft.name] = draft


def _free_name(label: str, taken: dict[str, _Draft]) -> str:
    if label[-1].isdigit() and label not in taken:
        return label
    stem = f"{label}-" if label[-1].isdigit() else label
    number = 0
    while f"{stem}{number}" in taken:
        number += 1
    return f"{stem}{number}"


def _share_slots(config: ConfigFile, drafts: list[_Draft], findings: Findings) -> int | None:
    for draft in drafts:
        draft.slots = draft.table.slots or config.executors.slots or 1
    capacity = config.source.casola.capacity
    if capacity is None or not drafts:
        return None
    name = findings.name_of(("source", "casola", "capacity"))
    sharing = [draft for draft in drafts if draft.table.slots is None]
    left = capacity - sum(draft.slots for draft in drafts if draft.table.slots is not None)
    for number, draft in enumerate(sharing):
        share, more = divmod(max(left, 0), len(sharing))
        draft.slots = max(1, share + (number < more))
    if config.executors.slots is not None and any(draft.slots != config.executors.slots for draft in sharing):
        findings.warn(
            f"{findings.name_of(('executors', 'slots'))} = {config.executors.slots} has no effect: "
            f"{name} = {capacity} is the total, spread over {len(drafts)} executors"
        )
    total = sum(draft.slots for draft in drafts)
    if total > capacity:
        findings.warn(
            f"{name} = {capacity} is less than the {total} slots of {len(drafts)} executors: "
            f"the queue is offered {capacity} at most, so some executors stay idle"
        )
        return capacity
    if total < capacity:
        findings.warn(
            f"{name} = {capacity} is more than the {total} slots that the executors were given: "
            f"the queue is offered {total}"
        )
    return None


def _set_ports(config: ConfigFile, drafts: list[_Draft], findings: Findings) -> None:
    table = config.executors
    taken: dict[int, _Draft] = {}
    for number, draft in enumerate(drafts):
        draft.port = draft.table.port or table.port_base + number * table.port_block
        if draft.engine.kind is EngineKind.ECHO:
            continue  # it listens on nothing
        if draft.port + table.port_block - 1 > 65535:
            findings.refuse(
                ("executors", "port_base") if draft.table.port is None else (*draft.path, "port"),
                table.port_base if draft.table.port is None else draft.port,
                f"the ports of executor {draft.name} would be {draft.port} to "
                f"{draft.port + table.port_block - 1}, beyond 65535",
                "choose a lower port, or a smaller executors.port_block",
            )
            return
        if (other := taken.get(draft.port)) is not None:
            path = (*draft.path, "port") if draft.table.port is not None else (*other.path, "port")
            findings.refuse(
                path,
                draft.port,
                f"executors {other.name} and {draft.name} would listen on the same port",
                "choose another one, or leave `port` out",
            )
        taken[draft.port] = draft


def _refuse_shared_gpus(drafts: list[_Draft], findings: Findings) -> None:
    owners: dict[str, _Draft] = {}
    for draft in drafts:
        names = [(gpu.uuid, f"GPU {gpu.index}") for gpu in draft.place.gpus]
        for uuid, what in [*names, *([(draft.place.mig, draft.place.mig)] if draft.place.mig else [])]:
            owner = owners.setdefault(uuid, draft)
            if owner is not draft:
                findings.refuse(
                    draft.place.path,
                    None,
                    f"{what} is named for two executors, {owner.name} and {draft.name}",
                    "give each GPU to one executor",
                )
            elif [name for name, _ in names].count(uuid) > 1:
                findings.refuse(
                    draft.place.path, None, f"{what} is named twice for executor {draft.name}", "name it once"
                )
                break


def _check_environment(environment: dict[str, str], path: Path, findings: Findings) -> None:
    for name, value in environment.items():
        if name in _RESERVED or name.startswith("GPUWARD_"):
            findings.refuse(
                (*path, name),
                value,
                "expected a variable that the supervisor does not set itself",
                "remove it",
            )
        elif not name or "=" in name or "\0" in name + value:
            findings.refuse((*path, name), value, "expected a name without `=`, and no NUL characters")
        elif is_secret_name(name):
            findings.warn(
                f"{findings.name_of((*path, name))} looks like a secret: set it in the supervisor's own "
                "environment, which executors inherit"
            )


# ---------------------------------------------------------------- the result


def _setup(config: ConfigFile, draft: _Draft) -> ExecutorSetup:
    engine = draft.engine
    return ExecutorSetup(
        name=ExecutorName(draft.name),
        pinning=draft.place.pinning,
        gpus=tuple(gpu.index for gpu in draft.place.gpus),
        uuids=(draft.place.mig,) if draft.place.mig else tuple(gpu.uuid for gpu in draft.place.gpus),
        slots=draft.slots,
        engine=EngineSpec(
            kind=engine.kind,
            host=engine.host,
            port=draft.port,
            model=engine.model,
            served_model_name=engine.served_model_name,
            serve_command=engine.serve_command,
            extra_args=draft.extra_args,
            command=draft.command,
            health_path=engine.health_path,
            start_timeout_s=engine.start_timeout_s,
            request_timeout_s=engine.request_timeout_s,
            stop_grace_s=engine.stop_grace_s,
        ),
        ports=config.executors.port_block,
        environment={**config.executors.environment, **draft.table.environment},
    )
