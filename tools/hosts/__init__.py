"""Hosts of its own on one machine: network namespaces on a bridge, clocks that differ, and ways between them that fail.

    from tools.hosts import Hosts, unavailable

    if (why := unavailable()) is not None: ...            # not root, no iproute2, a kernel without time namespaces
    with Hosts(seed=1) as hosts:
        a = hosts.add("a")                                  # a.address == "10.77.0.2", a.name == "a"
        b = hosts.add("b", clock_s=86_400)                  # its CLOCK_MONOTONIC is a day ahead of this machine's
        process = b.run([sys.executable, "-m", "cwd", ...], env={"CWD_KEY": "..."}, stdout=path)
        link = hosts.link(to=a, port=5571)                  # a proxy; link.endpoint == "tcp://10.77.0.1:PORT"
        link.delay(5, jitter_ms=2)                          # each way: 5 ms and up to 2 ms more, in order
        link.delay(40, way="there")                         # towards `to` alone; "back" is the other direction
        link.stall(.5)                                      # nothing passes for half a second, nothing is lost
        link.cut(1)                                         # connections are reset, new ones refused, for a second
        link.cut(silent=True)                               # all is swallowed, new connections hang: until clear()
        link.clear()
        link.stats()                                        # {"there_passed_bytes": ..., "connections": ..., "open": ...}
        b.unplug(); b.plug()                                # its cable: packets are lost, connections stay
        b.kill()                                            # kill -9 of everything that runs there, at once

`Host.run` returns the `subprocess.Popen` of the process itself, started and not waited for: its pid is this machine's,
signals and exit codes are its own. The host's processes see one another only, in a /proc of their own, and the files of
this machine (so unix sockets reach across hosts, and tests talk to a daemon's admin endpoint by ipc). `env` is added to
this process's environment; a value of None takes a name out.

Everything is gone at the end of the `with` block, also after an exception: a host is a process namespace whose first process
dies with the process that made the host, and the kernel ends all others with it; the network and its
devices go with the last process. So a run that was killed leaves nothing behind, and needs nobody to clear up after it.
No name and no address is visible outside, so runs do not meet.

The way from one host to another is direct (a.address) or through a link. A link is a process of its own, where the
bridge is. A link's connection that finds `to` refusing is accepted first and reset then: a proxy cannot refuse what it
has not tried. After a silent cut every connection that lived through it is reset, since bytes of it are missing.
"""

from __future__ import annotations

from tools.hosts.hosts import Host, Hosts, HostsError, closed_on_error, unavailable
from tools.hosts.link import Link

__all__ = ["Host", "Hosts", "HostsError", "Link", "closed_on_error", "unavailable"]
