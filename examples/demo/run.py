"""``make demo``: a queue, a node with two executors, jobs, one engine killed mid-job, and what came of it.

Everything runs on this machine: no GPU, no account, no network but 127.0.0.1. The programs are the real
ones (``gpuward dev-queue``, ``gpuward run``); only the engines are simulated. ``KEEP=1`` keeps them up.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

#: Jobs of each kind.
PERSISTED, CHATS, EMBEDDINGS = 24, 12, 4
#: A patient bound for each wait in seconds.
PATIENCE_S = 40.0
#: As much of a death's account as the story tells.
DETAIL_CHARS = 160

GPUWARD = [sys.executable, "-m", "gpuward_supervisor"]
_BOLD, _RED, _GREEN, _DIM, _OFF = (
    ("\033[1m", "\033[31m", "\033[32m", "\033[2m", "\033[0m")
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ
    else ("", "", "", "", "")
)


class DemoFailed(Exception):
    """Something did not happen in time."""


class Log:
    """Reads the node's JSON log while it is written."""

    def __init__(self, stream: Any, path: Path) -> None:
        self.lines: list[dict[str, Any]] = []
        self._stream = stream
        self._file = path.open("wb")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for raw in self._stream:
            self._file.write(raw)
            self._file.flush()
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if isinstance(line, dict):
                self.lines.append(line)

    def of(self, event: str, **facts: Any) -> list[dict[str, Any]]:
        """Lines of this event with these facts, so far."""
        return [
            x
            for x in list(self.lines)
            if x.get("event") == event and all(x.get(k) == v for k, v in facts.items())
        ]


def main() -> int:
    """Run the demo; 0 when every job was answered and one executor died and came back."""
    keep = os.environ.get("KEEP", "") not in ("", "0")
    folder = Path(tempfile.mkdtemp(prefix="gpuward-demo-"))
    started: list[subprocess.Popen[bytes]] = []
    try:
        return Demo(folder, started).run(keep)
    except DemoFailed as failure:
        print(f"{_RED}demo failed:{_OFF} {failure}", file=sys.stderr)
        keep = True  # keep the folder, not the processes
        return 1
    except KeyboardInterrupt:
        print("\nstopped before its end; everything that it started is stopped too", file=sys.stderr)
        return 130
    finally:
        for process in reversed(started):
            end(process)
        if keep:
            print(f"the logs stay in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


class Demo:
    """One run of the demo."""

    def __init__(self, folder: Path, started: list[subprocess.Popen[bytes]]) -> None:
        self.folder = folder
        self.started = started
        self.queue_port = free_port()
        self.http = f"http://127.0.0.1:{self.queue_port}"
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """One line of the story."""
        print(f"{_DIM}{time.monotonic() - self.began:5.1f} s{_OFF}  {text}", flush=True)

    def run(self, keep: bool) -> int:
        """Tell the story from start to end."""
        self.start_queue()
        log = self.start_node()
        self.say("sending jobs: some stored (callers poll), some live chat and embedding requests")
        with ThreadPoolExecutor(16) as pool:
            jobs = [pool.submit(self.submit, n) for n in range(PERSISTED)]
            calls = [pool.submit(self.chat, n) for n in range(CHATS)]
            calls += [pool.submit(self.embed, n) for n in range(EMBEDDINGS)]
            ids = [job.result() for job in jobs]
            victim = self.kill_an_engine(log)
            answers = [call.result() for call in calls]
        self.wait(lambda: self.open_jobs(ids) == 0, "all stored jobs to be answered")
        self.wait(lambda: len(log.of("executor.ready", executor=victim)) >= 2, f"{victim} to come back")
        self.say(f"{_GREEN}{victim} is back{_OFF}")
        good = self.summary(log, ids, answers)
        if keep and good:
            self.keep()
        self.started.remove(self.node)
        code = end(self.node)
        self.say(f"node stopped, exit code {code}")
        return 0 if good and code == 0 else 1

    def start_queue(self) -> None:
        """The development queue."""
        self.say("starting the queue:  gpuward dev-queue")
        out = (self.folder / "queue.log").open("wb")
        self.queue = subprocess.Popen(
            [*GPUWARD, "dev-queue", "--port", str(self.queue_port)], stdout=out, stderr=out
        )
        self.started.append(self.queue)
        self.wait(self.queue_answers, "the queue to listen")

    def start_node(self) -> Log:
        """The node: one supervisor, two executors, each with an engine of its own."""
        config = self.folder / "node.toml"
        config.write_text(
            f"""\
[node]
state_dir = "{self.folder}/state"
runtime_dir = "{self.folder}/run"
log_format = "json"
log_level = "info"

[source.casola]
url = "ws://127.0.0.1:{self.queue_port}"
config_id = "default"
worker_id = "demo-node"

[executors]
gpus = "none"          # on a GPU node: "each", one executor per GPU
count = 2
slots = 4
port_base = {free_port_base()}

[executors.engine]
kind = "simulated"     # on a GPU node: "vllm"
extra_args = ["--startup-s", "1", "--token-s", "0.06"]
"""
        )
        self.say("starting the node:   gpuward run --config node.toml   (2 executors)")
        self.node = subprocess.Popen(
            [*GPUWARD, "run", "--config", str(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.started.append(self.node)
        log = Log(self.node.stdout, self.folder / "node.log")
        self.wait(lambda: len(log.of("executor.ready")) >= 2, "both executors to be ready")
        self.say("both executors are ready")
        return log

    def kill_an_engine(self, log: Log) -> str:
        """SIGSEGV to one engine while it works; returns its executor's name."""
        cores = engine_cores(self.folder)
        if not cores:
            raise DemoFailed("found no engine process to kill")
        victim, pid = min(cores.items())
        self.wait(lambda: self.running() > 4, "jobs to be running on both executors")
        os.kill(pid, signal.SIGSEGV)
        self.say(f"{_RED}SIGSEGV{_OFF} to the engine of {_BOLD}{victim}{_OFF} (pid {pid}), in mid-job")
        self.wait(lambda: len(log.of("executor.died", executor=victim)) >= 1, "the death to be noticed")
        death = log.of("executor.died", executor=victim)[0]
        self.say(f"the node says: {brief(str(death.get('detail') or 'executor died'))}")
        return victim

    def summary(self, log: Log, ids: list[str], answers: list[str]) -> bool:
        """Print what came of it; True when nothing was lost and one executor died and came back."""
        jobs = [self.get(f"/jobs/{job}") for job in ids]
        done = Counter(str(job["status"]) for job in jobs)
        good_answers = sum(answer == "ok" for answer in answers)
        finished = Counter(str(line.get("executor")) for line in log.of("job.finished", outcome="succeeded"))
        deaths = log.of("executor.died")
        retried = log.of("job.retried")
        asked = len(ids) + len(answers)
        answered = done["completed"] + good_answers
        print(f"\n{_BOLD}What happened{_OFF}")
        print(f"  jobs asked      {asked:4}   ({len(ids)} stored, {CHATS} chat, {EMBEDDINGS} embeddings)")
        print(f"  jobs answered   {answered:4}   lost {asked - answered}")
        for executor, count in sorted(finished.items()):
            print(f"    on {executor:<12} {count:4}")
        print(f"  executors died  {len(deaths):4}   " + ", ".join(str(d.get("executor")) for d in deaths))
        print(f"  jobs retried    {len(retried):4}   on the other executor, unseen by their callers")
        for death in deaths:
            back = log.of("executor.ready", executor=death["executor"])
            print(
                f"  {death['executor']} respawned as incarnation {back[-1].get('incarnation')}, ready again"
            )
        for answer in sorted(set(answers) - {"ok"}):
            print(f"  {_RED}a caller got: {answer}{_OFF}")
        good = answered == asked and len(deaths) == 1 and len(retried) >= 1
        print(f"  {_GREEN + 'nothing was lost' if good else _RED + 'NOT as promised'}{_OFF}\n")
        return good

    def keep(self) -> None:
        """Stay up until Ctrl-C or until one of the programs ends."""
        print(f"{_BOLD}Still up.{_OFF} Try, in another terminal:\n")
        print(f"  curl -s {self.http}/health")
        print(
            f"  curl -s {self.http}/v1/chat/completions -H 'content-type: application/json' \\\n"
            '       -d \'{"model": "default", "messages": [{"role": "user", "content": "hello"}]}\''
        )
        print(
            f"  curl -s {self.http}/jobs -H 'content-type: application/json' \\\n"
            '       -d \'{"payload": {"task": "openai/embeddings", "input": "hello"}}\''
        )
        for executor, pid in sorted(engine_cores(self.folder).items()):
            print(f"  kill -SEGV {pid}        # the engine of {executor}")
        print(f"  tail -f {self.folder}/node.log")
        print("\nCtrl-C ends it.", flush=True)
        try:
            while self.node.poll() is None and self.queue.poll() is None:
                time.sleep(0.5)
        except KeyboardInterrupt:
            print()

    # ------------------------------------------------------------ the callers

    def submit(self, number: int) -> str:
        """A stored job; returns its id."""
        payload = {
            "task": "openai/chat-completion",
            "messages": [{"role": "user", "content": f"stored job {number}"}],
            "max_tokens": 12,
        }
        job = self.post("/jobs", {"payload": payload})
        return str(job.get("id") or job["job_id"])

    def chat(self, number: int) -> str:
        """A live chat request; ``ok`` or what went wrong."""
        question = f"live question {number}"
        try:
            answer = self.post(
                "/v1/chat/completions",
                {"model": "default", "max_tokens": 16, "messages": [{"role": "user", "content": question}]},
            )
            text = answer["choices"][0]["message"]["content"]
        except (DemoFailed, KeyError, IndexError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
        return "ok" if question in str(text) else f"not an answer to {question!r}: {text!r}"

    def embed(self, number: int) -> str:
        """A live embedding request; ``ok`` or what went wrong."""
        try:
            answer = self.post("/v1/embeddings", {"model": "default", "input": f"text {number}"})
            vector = answer["data"][0]["embedding"]
        except (DemoFailed, KeyError, IndexError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
        return "ok" if len(vector) > 1 else f"not a vector: {vector!r}"

    def running(self) -> int:
        """Stored jobs that the queue has given to the node."""
        return sum(job["status"] == "running" for job in self.list_jobs())

    def open_jobs(self, ids: list[str]) -> int:
        """How many of these jobs have no answer yet."""
        wanted = set(ids)
        return sum(
            str(j.get("id") or j.get("job_id")) in wanted and j["status"] in ("pending", "running")
            for j in self.list_jobs()
        )

    def list_jobs(self) -> list[dict[str, Any]]:
        """All stored jobs as the queue knows them."""
        answer = self.get("/jobs")
        return list(answer["jobs"] if isinstance(answer, dict) else answer)

    def queue_answers(self) -> bool:
        """True once the queue listens."""
        try:
            self.get("/health")
        except DemoFailed:
            return False
        return True

    def get(self, path: str) -> Any:
        """GET a JSON document from the queue."""
        return self._call(urllib.request.Request(self.http + path))

    def post(self, path: str, body: object) -> Any:
        """POST a JSON document to the queue."""
        return self._call(
            urllib.request.Request(
                self.http + path, json.dumps(body).encode(), {"content-type": "application/json"}
            )
        )

    def _call(self, request: urllib.request.Request) -> Any:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + PATIENCE_S
        wait_s = 0.2
        while True:
            try:
                with direct.open(request, timeout=60) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                # 503: no free slot at this moment; a polite caller tries again, and with one of two engines
                # gone on a busy machine that can take a while.
                if error.code == 503 and time.monotonic() + wait_s < deadline:
                    time.sleep(wait_s)
                    wait_s = min(wait_s * 2, 1.0)
                    continue
                raise DemoFailed(
                    f"HTTP {error.code} {error.read()[:200].decode(errors='replace')}"
                ) from error
            except OSError as error:
                raise DemoFailed(f"{request.full_url}: {error}") from error

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            for process in self.started:
                if process.poll() is not None:
                    raise DemoFailed(
                        f"a program ended early with {process.returncode} while waiting for {what}"
                    )
            if time.monotonic() > deadline:
                raise DemoFailed(f"waited {PATIENCE_S:.0f} s for {what}")
            time.sleep(0.05)


def brief(text: str) -> str:
    """The first words of a long account; all of it is in the node's log."""
    return text if len(text) <= DETAIL_CHARS else f"{text[:DETAIL_CHARS].rstrip()} …"


def engine_cores(folder: Path) -> dict[str, int]:
    """Pid of the engine core process of each executor of the node that lives in this folder."""
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            environment = dict(
                pair.split(b"=", 1) for pair in (entry / "environ").read_bytes().split(b"\0") if b"=" in pair
            )
        except OSError:
            continue
        tag = environment.get(b"GPUWARD_EXECUTOR", b"").decode()
        if tag and b"engine_process" in command and str(folder).encode() in environment.get(b"TMPDIR", b""):
            found[tag.rpartition(".")[0]] = int(entry.name)
    return found


def end(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM, then SIGKILL; returns the exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def free_port() -> int:
    """A port of 127.0.0.1 that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_port_base() -> int:
    """The first of 64 ports of which the ones that the engines take are free."""
    for base in range(18000 + os.getpid() % 50 * 64, 32000, 64):
        try:
            for port in range(base, base + 64, 8):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise DemoFailed("found no 64 free ports between 18000 and 32000 on 127.0.0.1")


if __name__ == "__main__":
    raise SystemExit(main())
