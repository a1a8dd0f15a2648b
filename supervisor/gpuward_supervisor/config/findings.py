"""What loading has found so far: problems, warnings, and which setting came from the environment."""

from __future__ import annotations

from gpuward_supervisor.config.problems import Path, Problem, key_text, shown


class Findings:
    """Collected while a configuration is read, so that everything wrong is said at once."""

    def __init__(self, file: str) -> None:
        """Start empty.

        Args:
            file: name of the configuration file, or empty when there is none.
        """
        self.file = file
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        #: Settings that are read and kept but without effect, as sentences.
        self.notes: list[str] = []
        #: Path of a setting -> the environment variable that it was taken from.
        self.origins: dict[Path, str] = {}
        self._refused: set[Path] = set()

    def refuse(self, path: Path, value: object, expected: str, next_step: str = "") -> None:
        """Note a problem with the setting at ``path``.

        Args:
            path: where it is, from the top of the file.
            value: what it is; None when it is missing.
            expected: what would be right.
            next_step: what to do.
        """
        self._refused.add(path)
        where, key = self.place(path)
        text = "" if value is None else shown(value, str(path[-1]) if path else "")
        self.problems.append(Problem(where, key, text, expected, next_step))

    def refuse_variable(self, name: str, value: str, expected: str, next_step: str = "") -> None:
        """Note a problem with an environment variable."""
        self.problems.append(
            Problem("environment", name, shown(value, name) if value else "", expected, next_step)
        )

    def warn(self, text: str) -> None:
        """Note something worth attention, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def refused(self, path: Path) -> bool:
        """Whether this setting, or something inside or around it, was refused already."""
        return any(path[: len(other)] == other or other[: len(path)] == path for other in self._refused)

    def mark_refused(self, path: Path) -> None:
        """Note that a problem was reported for this setting under another name."""
        self._refused.add(path)

    def given(self, path: Path) -> bool:
        """Whether the setting came from the environment."""
        return path in self.origins

    def place(self, path: Path) -> tuple[str, str]:
        """Where a person finds a setting: the file or the environment, and the name it has there."""
        for length in range(len(path), 0, -1):
            variable = self.origins.get(path[:length])
            if variable is not None:
                return "environment", variable
        return self.file, key_text(path)

    def name_of(self, path: Path) -> str:
        """The setting's name there."""
        return self.place(path)[1]
