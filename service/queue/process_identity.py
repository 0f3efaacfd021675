"""Who a worker process is, and how another one can be sure that it is dead: by proof only, never by its silence."""

import os
from pathlib import Path

from service.protocol import Wire

PROC = Path("/proc")


class ProcessIdentity(Wire, frozen=True, kw_only=True):
    """A process; no two that ever run have the same identity."""

    name: str = ""
    """Of the pod, container or unit that it runs in, which runs one process at a time; "": of none."""
    machine: str
    """Processes that have this in common see each other by their ids; "": nothing tells."""
    pid: int
    started: float
    """Seconds from the machine's boot to the process's start; unlike the time of day, this is never corrected."""

    @classmethod
    def of_this_process(cls, name: str = "") -> "ProcessIdentity":
        """Return who this process is; `name` as above."""
        pid, machine = os.getpid(), _machine()
        return cls(name=name, machine=machine, pid=pid, started=(_started(pid) or 0.0) if machine else 0.0)

    def sees_dead(self, other: "ProcessIdentity") -> bool:
        """Return whether `other` is no more, as this process sees it; False also where it cannot be seen from here.

        A stopped process lives; a zombie does not, nor does the former owner of a process id.
        """
        return bool(self.machine) and self.machine == other.machine and not _may_live(other)

    def replaces(self, other: "ProcessIdentity") -> bool:
        """Return whether this process was started in the place of `other`, which proves that `other` is dead.

        To be asked by a new process alone: asked by `other`, should it wake after all, it says the same of the new one.
        """
        is_successor = bool(self.name) and self.name == other.name and self != other
        return is_successor and (self.machine != other.machine or not self.machine or not _may_live(other))


def _machine() -> str:
    """Return the boot and the namespace in which a process id means something; "" where there is no /proc.

    A host's name will not do: containers and laptops that know nothing of each other have the same.
    """
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _may_live(identity: ProcessIdentity) -> bool:
    """Return whether a process of this machine lives, as far as may be seen."""
    try:
        return _started(identity.pid) == identity.started
    except ProcessLookupError:  # it went while it was read
        return False
    except OSError:  # no such process, or one of another user's in a /proc that hides these
        return _exists(identity.pid)


def _started(pid: int) -> float | None:
    """Return when a process started, in seconds after the boot; None for a zombie."""
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()  # a program's name may hold anything
    return None if fields[0] in "ZXx" else int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
