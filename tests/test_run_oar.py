"""run_oar.sh under false schedulers, with a python that trains nothing: no OAR, no Slurm."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from child_processes import ROOT

JOB = 999_000_001
SCHEDULERS = ("oar", "slurm")
FAILS = '#!/bin/bash\nprintf "%s\\n" "$@" >> calls.txt\nenv >> variables.txt\nexit 1\n'
# torchrun with one rank, which works until a signal comes. torchrun dies of USR2, unless ignored.
WORKS = f"""#!{sys.executable} -S
import signal, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-S", "rank.py"])
signals = []
def end(number, frame):
    signals.append(number)
    rank.terminate()
signal.signal(signal.SIGTERM, end)
while rank.poll() is None:
    time.sleep(0.02)
sys.exit(1 if signals else rank.returncode)
"""
SAVES = """
import signal, sys, time
def save(number, frame):
    time.sleep(0.4)
    open("run/last.pt", "w").close()
    open("run/interrupted", "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGUSR2, save)
open("started", "w").close()
time.sleep(60)
"""
PROGRAMS = {
    ".venv/bin/python": FAILS,
    # Another node: it inherits nothing.
    "bin/oarsh": '#!/bin/bash\nexec env -i PATH="$PATH" bash -c "$2"\n',
    "bin/srun": '#!/bin/bash\necho "$$" >> steps.txt\nexec "${@: -3}"\n',
    "bin/scontrol": '#!/bin/bash\n[ "$1" != show ] || exec cat nodes\necho "$@" >> again.txt\n',
    "bin/sleep": "#!/bin/bash\nexec /bin/sleep 0.05\n",
}


class Job(NamedTuple):
    """A job in a folder of its own, where run_oar.sh and false programs lie."""

    folder: Path
    scheduler: str

    def start(self, *flags: str, gpus: int = 0, number: int = JOB, **more: str) -> subprocess.Popen:
        """`run_oar.sh run FLAGS`, with so many GPUs on each of its nodes."""
        rows = [f"gpudevice = '{gpu}'" for gpu in range(gpus)] or ["core = '0'"]
        lines = [f"network_address = 'here' , {row}\n" for row in rows]
        (self.folder / "resources").write_text("".join(lines))
        given = {
            "oar": {
                "OAR_JOB_ID": str(number),
                "OAR_NODEFILE": "nodes",
                "OAR_RESOURCE_PROPERTIES_FILE": "resources",
            },
            "slurm": {
                "SLURM_JOB_ID": str(number),
                "SLURM_JOB_NODELIST": "node[1-2]",
                "SLURM_GPUS_ON_NODE": str(gpus),
            },
            "none": {},
        }[self.scheduler]
        # OAR's job must be older than a minute, or it waits.
        own = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "SECONDS": "100"}
        command = ["bash", "run_oar.sh", "run", *flags]
        return subprocess.Popen(
            command, cwd=self.folder, env=own | given | more, start_new_session=True
        )

    def run(self, *flags: str, **how) -> tuple[int, str]:
        """Exit code and log."""
        code = self.start(*flags, **how).wait(30)
        return code, self.log(how.get("number", JOB))

    def run_and_stop(self, *targets: str, **more: str) -> tuple[int, str]:
        """The same, of a job whose ranks work. targets: "SIGNAL to script" or "to step"."""
        (self.folder / ".venv/bin/python").write_text(WORKS)
        started = self.folder / "started"
        started.unlink(missing_ok=True)
        process = self.start(**more)
        try:
            while not started.exists():
                time.sleep(0.02)
            for target in targets:
                name, receiver = target.split(" to ")
                for pid in [process.pid] if receiver == "script" else self.step():
                    os.kill(pid, getattr(signal, f"SIG{name}"))
            return process.wait(30), self.log(JOB)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def step(self) -> list[int]:
        """The processes of the last srun, all of which Slurm signals."""
        return descendants(int((self.folder / "steps.txt").read_text().split()[-1]))

    def log(self, number: int) -> str:
        return (self.folder / f"run/log.{number}.txt").read_text()

    def words(self) -> list[str]:
        """Of the commands that started torchrun."""
        return (self.folder / "calls.txt").read_text().splitlines()

    def is_submitted_again(self, code: int) -> bool:
        """Which OAR does for a code, and Slurm for a command."""
        again = self.folder / "again.txt"
        if self.scheduler == "slurm":
            return again.exists() and again.read_text() == f"requeue {JOB}\n"
        return code == 99


def descendants(pid: int) -> list[int]:
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [pid, *(number for child in children.split() for number in descendants(int(child)))]


def make_job(folder: Path, scheduler: str) -> Job:
    script = (ROOT / "run_oar.sh").read_text()
    for seconds, shorter in (("-t 15 word", "-t 0.5 word"), ("-t 1 signal", "-t 0.1 signal")):
        assert seconds in script
        script = script.replace(seconds, shorter)
    for program, text in (PROGRAMS | {"run_oar.sh": script, "rank.py": SAVES}).items():
        file = folder / program
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    (folder / "nodes").write_text("here\n")
    return Job(folder, scheduler)


@pytest.fixture(params=SCHEDULERS)
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    """A job on one node under each scheduler, whose python fails at once."""
    return make_job(tmp_path, request.param)


@pytest.fixture
def slurm_job(tmp_path: Path) -> Job:
    return make_job(tmp_path, "slurm")


def test_a_job_that_fails_is_not_submitted_again_for_the_marker_of_the_job_before(job: Job):
    (job.folder / "run").mkdir()
    (job.folder / "run/interrupted").touch()
    code, log = job.run()
    assert code == 1
    assert not job.is_submitted_again(code)
    assert "failed with exit code 1" in log and "again" not in log
    assert job.words()


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_job_with_gpus_asks_for_them_unless_the_flags_say_other(job: Job, gpus: int):
    job.run("--device", "cpu", gpus=gpus)
    words = job.words()
    assert f"--nproc-per-node={max(1, gpus)}" in words
    devices = [words[i + 1] for i, word in enumerate(words) if word == "--device"]
    assert devices == (["cuda", "cpu"] if gpus else ["cpu"])  # the last one counts
    assert words[-3:] == ["--out", "run", "--resume"]


def test_two_nodes_meet_at_a_port_that_another_job_does_not_use(job: Job):
    (job.folder / "nodes").write_text("here\nthere\n")
    job.run()
    job.run(number=JOB + 1)
    ports = [word for word in job.words() if word.startswith("--master-port")]
    assert len(ports) == 4 and ports[0] == ports[1] != ports[2] == ports[3]
    ranks = [word for word in job.words() if word.startswith("--node-rank")]
    assert sorted(ranks) == ["--node-rank=0", "--node-rank=0", "--node-rank=1", "--node-rank=1"]
    assert job.words().count("--nnodes=2") == job.words().count("--master-addr=here") == 4


def test_a_job_that_is_done_on_every_node_ends_with_0(job: Job):
    (job.folder / "nodes").write_text("here\nthere\nyonder\n")
    (job.folder / ".venv/bin/python").write_text("#!/bin/bash\n")
    code, log = job.run()
    assert code == 0
    assert log == "job 999000001 on here there yonder: run \n"


def test_settings_of_nccl_reach_every_node(job: Job):
    (job.folder / "nodes").write_text("here\nthere\n")
    job.run(NCCL_DEBUG="INFO", GLOO_SOCKET_IFNAME="ib0", SECRET="of the first node")
    variables = (job.folder / "variables.txt").read_text().splitlines()
    assert variables.count("NCCL_DEBUG=INFO") == variables.count("GLOO_SOCKET_IFNAME=ib0") == 2
    if job.scheduler == "oar":
        assert variables.count("SECRET=of the first node") == 1


def test_an_interrupted_job_is_submitted_again_and_goes_on_with_its_log(job: Job):
    code, log = job.run_and_stop("USR2 to script")
    assert code == 99
    assert job.is_submitted_again(code)
    assert log.count("job 999000001 on here: run") == 1
    code, log = job.run_and_stop("USR2 to script")
    assert log.count("job 999000001 on here: run") == 2


@pytest.mark.parametrize("name", ["TERM", "USR2"])
def test_a_signal_to_what_srun_runs_is_an_interruption(slurm_job: Job, name: str):
    """Slurm preempts so: TERM to the steps, nothing to the script."""
    code, _ = slurm_job.run_and_stop(f"{name} to step")
    assert (slurm_job.folder / "run/last.pt").exists()
    assert slurm_job.is_submitted_again(code)


@pytest.mark.parametrize("targets", [["TERM to script"], ["TERM to step", "TERM to script"]])
def test_a_job_that_is_ended_from_outside_is_not_submitted_again(slurm_job: Job, targets):
    code, log = slurm_job.run_and_stop(*targets)
    assert code == 1
    assert not slurm_job.is_submitted_again(code)
    assert (slurm_job.folder / "run/last.pt").exists()
    assert "does not submit the job again" in log


def test_interruptions_without_a_save_come_to_an_end(job: Job):
    rank = (job.folder / "rank.py").read_text().replace('open("run/last.pt", "w").close()', "pass")
    (job.folder / "rank.py").write_text(rank)
    (job.folder / "run").mkdir()
    (job.folder / "run/tries").write_text("1\n2\n3\n")
    code, _ = job.run_and_stop("USR2 to script")
    assert job.is_submitted_again(code)
    (job.folder / "again.txt").unlink(missing_ok=True)
    code, log = job.run_and_stop("USR2 to script")
    assert code == 1
    assert not job.is_submitted_again(code)
    assert "for the fifth time without a save" in log


def test_a_node_that_falls_silent_ends_the_job(slurm_job: Job):
    code, log = slurm_job.run_and_stop("STOP to step")
    for pid in slurm_job.step():
        os.kill(pid, signal.SIGKILL)
    assert code == 1
    assert not slurm_job.is_submitted_again(code)
    assert "here is lost" in log


def test_the_flags_of_an_array_of_slurm_hold_the_number_of_the_task(slurm_job: Job):
    slurm_job.run("--seed", "%a", SLURM_ARRAY_TASK_ID="7")
    words = slurm_job.words()
    assert words[words.index("--seed") + 1] == "7"


def test_a_task_of_an_array_of_slurm_goes_on_alone(slurm_job: Job):
    slurm_job.run_and_stop("USR2 to script", SLURM_ARRAY_JOB_ID="41", SLURM_ARRAY_TASK_ID="7")
    assert (slurm_job.folder / "again.txt").read_text() == "requeue 41_7\n"


def test_without_a_scheduler_it_says_who_is_to_start_it(tmp_path: Path):
    assert make_job(tmp_path, "none").start().wait(10) == 2
    assert not (tmp_path / "run").exists()


def test_the_script_is_one_page_that_both_schedulers_read():
    lines = (ROOT / "run_oar.sh").read_text().splitlines()
    assert len(lines) <= 150
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(not line.startswith(("#OAR", "#SBATCH")) for line in lines[first_command:])
    # OAR would choose between it and the command's.
    assert not any(line.startswith("#OAR -l") for line in lines)
    assert subprocess.run(["bash", "-n", ROOT / "run_oar.sh"]).returncode == 0
