"""Lava's runtime, that of a run on this machine, made so that it never waits for ever."""

import errno
import logging
import multiprocessing
import signal
import time
from typing import Any

import neurtransformer.loihi.lava_compat  # noqa: F401  (must come before Lava)

# isort: split
from lava.magma.core.process.message_interface_enum import ActorType
from lava.magma.runtime.mgmt_token_enums import MGMT_RESPONSE, enum_equal
from lava.magma.runtime.runtime import Runtime

from neurtransformer.errors import UserError

log = logging.getLogger(__name__)


class LavaFailed(RuntimeError):
    """A Lava process stopped with an error."""


class LavaRuntime(Runtime):
    """Lava's, but it waits neither for dead processes nor through a signal."""

    exception_q: list[Any]
    _messaging_infrastructure: Any

    def __init__(self, executable: Any) -> None:
        super().__init__(executable, ActorType.MultiProcessing)
        self.signals: list[int] = []  # those that wait, see `stop.held`

    def _start_ports(self) -> None:
        # Lava calls this when all processes have been forked; next it would wait for each to say
        # that it has been built
        super()._start_ports()
        while any(answer.empty() for answer in self.exception_q):
            self.look()
        errors = [answer.get() for answer in self.exception_q]
        self.exception_q = []
        for error in filter(None, errors):
            raise LavaFailed(f"a Lava process stopped: {type(error).__name__}: {error}") from error

    def wait_until_done(self) -> None:
        """Until all steps are done."""
        answers = self.service_to_runtime[0]
        while not answers.probe():
            self.look()
        if not enum_equal(answers.recv(), MGMT_RESPONSE.DONE):
            for _ in range(1000):  # the process that failed says so itself, a moment later
                self.look()
            raise LavaFailed("a Lava process did not say what stopped it")

    def look(self) -> None:
        """Wait a moment. Raises LavaFailed when there is a signal or a process has ended."""
        if self.signals:
            raise LavaFailed(f"Lava was stopped by {signal.Signals(self.signals[0]).name}")
        for actor in self.actors:
            if actor.exception is not None or not actor.is_alive():
                raise LavaFailed(f"a Lava process stopped: {_reason(actor)}")
        time.sleep(0.002)

    @property
    def actors(self) -> list[Any]:
        """The processes."""
        return self._messaging_infrastructure.actors if self._messaging_infrastructure else []

    def end(self) -> None:
        """Kill the processes. What they logged is in the files that they mapped."""
        self._is_started = False  # else Lava waits for the dead when this is collected
        for actor in self.actors:
            actor.kill()
        for actor in self.actors:
            multiprocessing.Process.join(actor)  # Lava's reads what a killed one began to say
        self.join()


def no_resources(error: OSError) -> Exception:
    """What the system would not give to Lava."""
    mend = {
        errno.EAGAIN: "the system allows no more processes: `ulimit -u` says how many",
        errno.EMFILE: "the system allows no more open files: raise `ulimit -n`",
        errno.ENFILE: "the system allows no more open files",
        errno.ENOMEM: "there is no memory left",
    }
    # the only files that Lava itself makes are its semaphores
    semaphores = f"no shared memory for Lava's semaphores (/dev/shm): {error.strerror}"
    return UserError(mend.get(error.errno or 0, semaphores))


def _reason(actor: Any) -> str:
    if actor.exception is None:
        code = actor.exitcode
        try:
            # who was short of memory is killed, who was short of disk is stopped at a mapped file
            return f"killed by {signal.Signals(-code).name}, as when memory or a disk is full"
        except ValueError:
            return f"exit code {code}"
    error, trace = actor.exception
    log.debug("%s", trace)
    return f"{type(error).__name__}: {error}"
