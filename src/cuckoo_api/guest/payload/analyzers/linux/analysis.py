"""One analysis from its configuration to its last uploaded file."""

import os
import time
import traceback
from typing import Optional

from agentlink import AgentStatus, Standby
from analysisconf import AnalysisConf
from containment import Containment, protect_self
from exitgate import ExitGate
from packagefiles import send_package_files
from processmemory import ProcessMemory
from results import Log, ResultServer
from targets import Command, choose_command
from tracing import Tracer


def main(folder: str) -> int:
    """Run the analysis that ``analysis.conf`` in this folder describes. Returns the exit code."""
    agent = AgentStatus()
    standby = Standby()
    containment = Containment()
    tracer = Tracer(containment)
    protect_self()
    try:
        if standby.asked:
            # the slow part, before the snapshot is taken
            tracer.start("")
            if not standby.wait():
                return 0
        return _run(folder, agent, containment, tracer)
    finally:
        tracer.close()
        containment.close()


def _run(folder: str, agent: AgentStatus, containment: Containment, tracer: Tracer) -> int:
    conf = AnalysisConf.read(os.path.join(folder, "analysis.conf"))
    server = ResultServer(conf.ip, conf.port)
    try:
        log = Log(server)
    except OSError as error:
        agent.post("exception", "cannot reach the result server: %s" % error)
        return 1
    failure: Optional[str] = None
    try:
        _analyse(conf, server, log, containment, tracer)
    except Exception as error:  # whatever it was, the host must hear of it
        failure = "%s: %s" % (type(error).__name__, error)
        log.error(traceback.format_exc())
    if failure is None:
        log.info("Analysis completed.")
        agent.post("complete", "")
    else:
        agent.post("exception", failure)
    # last: its end tells the host to ask the agent for the status
    log.close()
    return 0 if failure is None else 1


def _analyse(conf: AnalysisConf, server: ResultServer, log: Log, containment: Containment,
             tracer: Tracer) -> None:
    """Run the sample to its end or its time, then send what it left behind."""
    _set_clock(conf, log)
    deadline = time.monotonic() + conf.timeout
    command = choose_command(conf, log)
    memory = ProcessMemory(server, log) if conf.wants("procmemdump") else None
    gate = ExitGate(memory.dump) if memory is not None else None
    if command.user or gate is not None or not tracer.started:
        tracer.close()
        tracer.start(command.user, gate)
    if gate is not None and gate.fault:
        log.warning("The memory of those only that live to the end: %s" % gate.fault)
    if memory is not None:
        memory.tracer = tracer.pid
    tracer.release(command, server.stream("logs/trace.strace"))
    log.info("Started %s, traced by process %d" % (command.words, tracer.pid))
    ended = tracer.follow(deadline)
    if ended and tracer.killed:
        log.warning("The tracer was killed: what the sample does from now on is not recorded.")
        containment.wait(deadline)
    elif ended:
        log.info("All traced processes have ended.")
        _wait_for_timeout(conf, deadline, log)
    else:
        log.info("Analysis timeout hit, terminating analysis.")
    if memory is not None:
        _dump_survivors(memory, containment, tracer)
    survivors = containment.stop(tracer.pid)
    if survivors:
        log.warning("%d processes could not be killed." % survivors)
    tracer.finish(log)
    if gate is not None:
        gate.close()
    tracer.files.send(server, log)
    if not command.target:
        send_package_files(command.cwd, server, log)
    _remove_folder(command)


def _dump_survivors(memory: ProcessMemory, containment: Containment, tracer: Tracer) -> None:
    containment.freeze(True)
    try:
        for pid in containment.members(tracer.pid):
            memory.dump(pid)
    finally:
        containment.freeze(False)
    memory.finish()


def _wait_for_timeout(conf: AnalysisConf, deadline: float, log: Log) -> None:
    """With ``enforce_timeout``, give what the sample planted the rest of its time."""
    left = deadline - time.monotonic()
    if conf.enforce_timeout and left > 0:
        log.info("Waiting %d s more, as enforce_timeout asks." % left)
        time.sleep(left)


def _set_clock(conf: AnalysisConf, log: Log) -> None:
    """Set the guest's clock, which a restored snapshot leaves in the past."""
    if conf.clock is None or abs(conf.clock - time.time()) < 2:
        return
    try:
        time.clock_settime(time.CLOCK_REALTIME, conf.clock)
    except (AttributeError, OSError) as error:
        log.warning("Cannot set the clock: %s" % error)


def _remove_folder(command: Command) -> None:
    """Remove the working folder if the sample left nothing in it."""
    try:
        os.rmdir(command.cwd)
    except OSError:
        pass  # it holds files, which stay where the report says they are
