"""What lies in deploy/ fits the program: the entrypoint, the exit codes, the unit's settings."""

from __future__ import annotations

import configparser
import json
import re
import tomllib

import msgspec

from gpuward_supervisor.config.schema import ConfigFile
from support.source_tree import ROOT

DEPLOY = ROOT / "deploy"


def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text()


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string((DEPLOY / "gpuward.service").read_text())
    return parser


def test_the_container_has_no_shell_around_the_program() -> None:
    entrypoint = re.search(r"^ENTRYPOINT (.+)$", dockerfile(), re.MULTILINE)
    assert entrypoint is not None
    assert json.loads(entrypoint[1]) == ["gpuward", "run"]


def test_the_image_mends_what_the_upstream_image_breaks() -> None:
    text = dockerfile()
    assert "rm -f /etc/ld.so.conf.d/*cuda-compat*.conf && ldconfig" in text
    assert "libcuda.so.1" in text


def test_the_image_gets_every_source_root_that_the_wheel_packs() -> None:
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    source_roots = {package.partition("/")[0] for package in packed["packages"]}
    copied = set(re.findall(r"^COPY (\w+) \./\w+$", dockerfile(), re.MULTILINE))
    allowed = set(re.findall(r"^!(\w+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE))
    assert copied == source_roots
    assert allowed - {"LICENSE"} == source_roots


def test_the_unit_stops_the_supervisor_first_and_does_not_repeat_a_refused_configuration() -> None:
    service = unit()["Service"]
    assert service["Type"] == "exec"
    assert service["KillMode"] == "mixed"
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["OOMPolicy"] == "continue"


def test_the_unit_hides_no_gpu() -> None:
    service = unit()["Service"]
    hiding = {"PrivateDevices", "ProtectClock", "DevicePolicy", "DeviceAllow", "MemoryDenyWriteExecute"}
    assert hiding & set(service) == set()


def test_the_example_configuration_is_one() -> None:
    node = tomllib.loads((DEPLOY / "node.toml").read_text())
    config = msgspec.convert(node, ConfigFile)
    assert config.source.casola.url is not None
    assert config.source.casola.config_id is not None


def test_the_example_configuration_stays_one_with_every_line_uncommented() -> None:
    text = re.sub(r"^# ( *(?:\[|\w+ = ))", r"\1", (DEPLOY / "node.toml").read_text(), flags=re.MULTILINE)
    config = msgspec.convert(tomllib.loads(text), ConfigFile)
    assert [executor.name for executor in config.executor] == ["large", "small"]
    assert config.executor[0].engine.extra_args == ("--tensor-parallel-size", "2")


def test_what_the_example_configuration_shows_in_comments_are_the_defaults() -> None:
    """A key whose default is made of other things is shown with an example instead."""
    text = (DEPLOY / "node.toml").read_text()
    before, _, after = text.partition("# An executor may differ")
    lines = before.splitlines() + ("[dispatch]" + after.partition("[dispatch]")[2]).splitlines()
    defaults = msgspec.to_builtins(ConfigFile())
    table = defaults
    wrong = {}
    for line in lines:
        if header := re.match(r"\[([\w.]+)\]", line):
            table = defaults
            for part in header[1].split("."):
                table = table[part]
        elif shown := re.match(r"# (\w+ = [^#]+)", line):
            ((key, value),) = tomllib.loads(shown[1]).items()
            if table[key] not in {None, value}:
                wrong[key] = (value, table[key])
    assert wrong == {}
