"""Findings know where a setting came from."""

from __future__ import annotations

from gpuward_supervisor.config.findings import Findings


def test_a_problem_of_a_variable_names_the_variable() -> None:
    findings = Findings("node.toml")
    findings.origins["executors", "port_base"] = "VLLM_PORT"
    findings.refuse(("executors", "port_base"), 0, "expected 1 or more")
    findings.refuse(("executors", "slots"), 0, "expected 1 or more")
    assert [problem.text() for problem in findings.problems] == [
        "environment: VLLM_PORT = 0: expected 1 or more",
        "node.toml: executors.slots = 0: expected 1 or more",
    ]


def test_what_lies_inside_a_variables_setting_is_the_variables() -> None:
    findings = Findings("node.toml")
    findings.origins["executors", "gpus"] = "GPUWARD_GPUS"
    assert findings.place(("executors", "gpus", 1)) == ("environment", "GPUWARD_GPUS")
    assert findings.name_of(("executors", "slots")) == "executors.slots"


def test_a_refused_setting_is_known_with_all_that_is_in_and_around_it() -> None:
    findings = Findings("")
    findings.refuse(("executor", 0, "gpus"), 1, "no")
    assert findings.refused(("executor", 0, "gpus", 2))
    assert findings.refused(("executor", 0))
    assert not findings.refused(("executor", 1))
    assert not findings.refused(("executor", 0, "slots"))


def test_a_warning_is_said_once() -> None:
    findings = Findings("")
    findings.warn("a")
    findings.warn("a")
    assert findings.warnings == ["a"]


def test_a_variable_with_a_secret_name_is_masked() -> None:
    findings = Findings("")
    findings.refuse_variable("CASOLA_API_TOKEN", "abc", "it is odd")
    assert findings.problems[0].text() == "environment: CASOLA_API_TOKEN = ***: it is odd"
