"""Which executor gets which GPUs: the machine's list is cut into places, one per executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from gpuward_health.samples import Gpu
from gpuward_ipc.startup import EngineKind
from gpuward_supervisor.config.findings import Findings
from gpuward_supervisor.config.node import Pinning
from gpuward_supervisor.config.problems import Path
from gpuward_supervisor.config.schema import ExecutorsTable, GpuName
from gpuward_supervisor.config.visible_gpus import VisibleGpus, find

_GPUS: Path = ("executors", "gpus")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What one executor gets."""

    pinning: Pinning
    gpus: tuple[Gpu, ...] = ()
    #: A MIG device, in place of whole GPUs.
    mig: str = ""
    #: Where the configuration says so.
    path: Path = _GPUS

    @property
    def label(self) -> str:
        """Name of the executor that sits there, but for its number where GPUs do not number it."""
        match self.pinning:
            case Pinning.NO_GPU:
                return "cpu"
            case Pinning.UNPINNED:
                return "exec"
            case Pinning.PINNED:
                return "mig" if self.mig else "gpu" + "-".join(str(gpu.index) for gpu in self.gpus)


class Placing:
    """Cuts up the list of GPUs; asks the machine only when a setting needs to know."""

    def __init__(self, visible: Callable[[], VisibleGpus], findings: Findings) -> None:
        """Prepare.

        Args:
            visible: lists the GPUs; called when it is needed, any number of times.
            findings: gets problems and warnings.
        """
        self._visible = visible
        self._findings = findings

    def automatic(self, table: ExecutorsTable, kind: EngineKind, wanted: int, *, chosen: bool) -> list[Place]:
        """The places that [executors] makes.

        Args:
            table: the table.
            kind: what the engines are.
            wanted: GPUs that one engine uses.
            chosen: whether somebody wrote ``gpus``, rather than leaving it at its default.
        """
        size = self._group_size(table, wanted)
        match table.gpus:
            case "none":
                return [Place(pinning=Pinning.NO_GPU) for _ in range(table.count or 1)]
            case "each":
                if table.count is not None:
                    if not chosen:
                        return [Place(pinning=Pinning.NO_GPU) for _ in range(table.count)]
                    self._refuse_count(table)
                return self._each(kind, size, chosen=chosen)
            case int() as number:
                self._refuse_count(table)
                return self._first(number, size)
            case names:
                self._refuse_count(table)
                return self._named(names, kind, size, wanted)

    def listed(self, names: Sequence[GpuName], path: Path, kind: EngineKind, wanted: int) -> Place | None:
        """The place of one [[executor]] that names its GPUs; None when a problem was noted.

        Args:
            names: what it names.
            path: where.
            kind: what its engine is.
            wanted: GPUs that its engine uses.
        """
        return self._group(names, path, kind, wanted)

    def without_gpu(self, path: Path) -> Place:
        """The place of one [[executor]] that wants no GPU."""
        return Place(pinning=Pinning.NO_GPU, path=path)

    def unnamed(self, path: Path, kind: EngineKind) -> Place:
        """The place of one [[executor]] that says nothing of GPUs."""
        if kind in {EngineKind.SIMULATED, EngineKind.ECHO}:
            return Place(pinning=Pinning.NO_GPU, path=path)
        visible = self._visible()
        if visible.gpus or visible.mig_uuids:
            self._findings.refuse(
                path,
                None,
                f"there are GPUs here ({visible.text()}), and nothing says which are this executor's",
                f'write gpus = [{visible.gpus[0].index if visible.gpus else ""}], or gpus = "none"',
            )
        return Place(pinning=Pinning.UNPINNED, path=path)

    # ------------------------------------------------------------ the forms of `gpus`

    def _each(self, kind: EngineKind, size: int, *, chosen: bool) -> list[Place]:
        visible = self._visible()
        if visible.mig_uuids:
            if kind is EngineKind.VLLM:
                self._refuse_mig(_GPUS, visible.mig_uuids[0])
            return [Place(pinning=Pinning.PINNED, mig=uuid) for uuid in visible.mig_uuids]
        if not visible.gpus:
            # As the reference worker runs: one engine, which sees whatever is there.
            if kind in {EngineKind.VLLM, EngineKind.COMMAND}:
                self._findings.warn(f"{visible.remark}: one executor runs, not pinned to any GPU")
            return [Place(pinning=Pinning.UNPINNED)]
        rest = len(visible.gpus) % size
        if rest and (chosen or rest == len(visible.gpus)):
            self._refuse_remainder(visible, size)
            return []
        if rest:
            # A container whose reference worker never looked at the other GPUs must start here too.
            left = ", ".join(str(gpu.index) for gpu in visible.gpus[-rest:])
            self._findings.warn(f"GPU {left} stays unused: executors take {size} GPUs each")
        for gpu in visible.gpus:
            self._warn_of_mig_mode(gpu)
        return _chunks(visible.gpus[: len(visible.gpus) - rest], size)

    def _first(self, number: int, size: int) -> list[Place]:
        if number < 1:
            self._findings.refuse(
                _GPUS, number, "expected 1 GPU or more", 'for executors without a GPU, write "none"'
            )
            return []
        visible = self._visible()
        if number > len(visible.gpus):
            why = visible.remark or visible.limited_by
            self._findings.refuse(
                _GPUS,
                number,
                f"this machine shows {len(visible.gpus)} GPU(s)" + (f" ({why})" if why else ""),
                'ask for fewer, or write "each"',
            )
            return []
        if number % size:
            self._findings.refuse(_GPUS, number, f"expected a multiple of {size}, the GPUs of one executor")
            return []
        return _chunks(visible.gpus[:number], size)

    def _named(
        self, names: Sequence[GpuName | tuple[GpuName, ...]], kind: EngineKind, size: int, wanted: int
    ) -> list[Place]:
        if not names:
            self._findings.refuse(
                _GPUS, [], "expected at least one GPU", 'for executors without a GPU, write "none"'
            )
            return []
        groups = [name for name in names if isinstance(name, tuple)]
        flat = [name for name in names if not isinstance(name, tuple)]
        if groups and flat:
            self._findings.refuse(
                _GPUS,
                list(names),
                "expected either GPUs or lists of GPUs, not both",
                "put every GPU into a list",
            )
            return []
        if groups:
            places = [self._group(group, (*_GPUS, i), kind, wanted) for i, group in enumerate(groups)]
            return [place for place in places if place is not None]
        if len(flat) % size:
            self._findings.refuse(
                _GPUS,
                flat,
                f"{len(flat)} GPUs cannot be shared out to executors of {size} GPUs each",
                "name a multiple of that, or write the groups as lists",
            )
            return []
        cuts = [flat[i : i + size] for i in range(0, len(flat), size)]
        places = [self._group(cut, _GPUS, kind, wanted) for cut in cuts]
        return [place for place in places if place is not None]

    def _group(self, names: Sequence[GpuName], path: Path, kind: EngineKind, wanted: int) -> Place | None:
        if not names:
            self._findings.refuse(path, [], "expected at least one GPU", "leave the empty list out")
            return None
        migs = [name for name in names if isinstance(name, str) and name.startswith("MIG-")]
        if migs:
            return self._mig(migs[0], len(names), path, kind)
        gpus = [gpu for name in names if (gpu := self._gpu(name, path)) is not None]
        if len(gpus) < len(names):
            return None
        if len(gpus) < wanted:
            self._findings.refuse(
                path,
                list(names),
                f"its engine asks for {wanted} GPUs by its arguments",
                f"name {wanted} GPUs",
            )
            return None
        if kind is EngineKind.VLLM and len(gpus) > wanted:
            self._findings.warn(
                f"GPUs {', '.join(str(gpu.index) for gpu in gpus)} belong to one executor, whose engine uses "
                f"{wanted} by its arguments: the others stay idle; "
                f"--tensor-parallel-size {len(gpus)} takes all"
            )
        for gpu in gpus:
            self._warn_of_mig_mode(gpu)
        return Place(pinning=Pinning.PINNED, gpus=tuple(gpus), path=path)

    def _gpu(self, name: GpuName, path: Path) -> Gpu | None:
        visible = self._visible()
        if isinstance(name, str) and not name.startswith("GPU-"):
            step = f"write {name} without quotes" if name.isdigit() else "`nvidia-smi -L` lists the UUIDs"
            self._findings.refuse(
                path, name, "expected an index or a UUID that begins with GPU- or MIG-", step
            )
            return None
        gpu = find(str(name), visible.gpus)
        if gpu is None:
            why = visible.limited_by or visible.remark
            have = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in visible.gpus) or "none"
            self._findings.refuse(
                path, name, f"there is no such GPU here; there are: {have}" + (f"; {why}" if why else "")
            )
        return gpu

    # ------------------------------------------------------------ MIG

    def _mig(self, uuid: str, names: int, path: Path, kind: EngineKind) -> Place | None:
        if kind is EngineKind.VLLM:
            self._refuse_mig(path, uuid)
            return None
        if names > 1:
            self._findings.refuse(
                path, uuid, "a MIG device cannot be joined with others", "give it an executor of its own"
            )
            return None
        visible = self._visible()
        known = {known for gpu in visible.gpus for known in gpu.mig_uuids} | set(visible.mig_uuids)
        if uuid not in known:
            self._findings.refuse(
                path,
                uuid,
                f"there is no such MIG device here; there are: {', '.join(sorted(known)) or 'none'}",
            )
            return None
        return Place(pinning=Pinning.PINNED, mig=uuid, path=path)

    def _refuse_mig(self, path: Path, uuid: str) -> None:
        self._findings.refuse(
            path,
            uuid,
            "vLLM reads the entries of CUDA_VISIBLE_DEVICES as numbers and cannot take a MIG device",
            'give it a whole GPU, or run the engine as kind = "command"',
        )

    def _warn_of_mig_mode(self, gpu: Gpu) -> None:
        if gpu.mig_mode:
            self._findings.warn(
                f"GPU {gpu.index} is in MIG mode: by its index CUDA shows its first MIG device only"
            )

    # ------------------------------------------------------------ sizes

    def _group_size(self, table: ExecutorsTable, wanted: int) -> int:
        size = table.gpus_per_executor
        if size is None:
            return wanted
        if size < wanted:
            self._findings.refuse(
                ("executors", "gpus_per_executor"),
                size,
                f"the engine asks for {wanted} GPUs by its arguments",
                "leave it out, or change the parallel sizes",
            )
        return max(size, wanted)

    def _refuse_count(self, table: ExecutorsTable) -> None:
        if table.count is not None:
            self._findings.refuse(
                ("executors", "count"), table.count, 'expected only with gpus = "none"', "leave it out"
            )

    def _refuse_remainder(self, visible: VisibleGpus, size: int) -> None:
        limit = f" ({visible.limited_by})" if visible.limited_by else ""
        self._findings.refuse(
            _GPUS,
            None,
            f"{len(visible.gpus)} GPU(s) ({visible.text()}){limit} cannot be shared out to executors of "
            f"{size} GPUs each",
            "name the GPUs to use in executors.gpus, or change the parallel sizes in the engine's arguments",
        )


def _chunks(gpus: tuple[Gpu, ...], size: int) -> list[Place]:
    return [Place(pinning=Pinning.PINNED, gpus=gpus[i : i + size]) for i in range(0, len(gpus), size)]
