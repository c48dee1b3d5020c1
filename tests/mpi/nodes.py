"""A cluster in a box: ``python nodes.py --nodes 2 -n 4 train.py ARGUMENTS``.

Runs a Python program under MPICH's mpiexec on nodes that are namespaces of this machine.  Each has
a host name (node1, node2, ...), an address on a bridge, and, with ``--own FOLDER``, its own content
of a folder (all others are shared).  mpiexec starts its proxies by a launcher that enters the
nodes, as it does by ssh on a cluster, and messages between nodes go over TCP.  ``--rate 1gbit``
limits what a node sends.  The namespaces end with the command, and need Linux, ``unshare``,
``nsenter``, ``ip`` and ``tc``, but no rights.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NETWORK = "10.18.0"
OUTER = ("--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child")
TOOLS = ("unshare", "nsenter", "ip", "tc", "mount", "hostname")
OVER_TCP = {
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "FI_PROVIDER": "tcp",
    "FI_TCP_IFACE": "eth0",
}


def why_not():
    """Why nodes can't be made here; empty if they can."""
    missing = [tool for tool in (*TOOLS, "mpiexec") if _found(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    version = subprocess.run(
        [_found("mpiexec"), "-version"], capture_output=True, text=True, check=False
    )
    if "HYDRA" not in version.stdout:
        return "needs the mpiexec of MPICH: pip install mpich"
    script = "mount -t tmpfs tmpfs /run && ip link add br0 type bridge && ip netns add node1"
    tried = subprocess.run(
        ["unshare", *OUTER, "--mount-proc", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=_environment(),
        check=False,
    )
    return f"needs namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def command(nodes, ranks, *program, own=()):
    """The command that runs a Python program on nodes."""
    options = [f"--own={folder}" for folder in own]
    return [sys.executable, __file__, f"--nodes={nodes}", *options, "-n", str(ranks), *program]


def _found(tool):
    return shutil.which(tool, path=_environment()["PATH"])


def _environment():
    """That of this process; programs beside this Python and of the system are in the path."""
    beside = Path(sys.executable).parent
    return {**os.environ, "PATH": f"{beside}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


def _do(line, *arguments):
    subprocess.run([*line.split(), *map(str, arguments)], check=True)


def _lay_network(nodes, rate):
    _do("mount -t tmpfs tmpfs /run")
    _do("ip link add br0 type bridge")
    _do(f"ip addr add {NETWORK}.254/24 dev br0")
    _do("ip link set lo up")
    _do("ip link set br0 up")
    for k in range(1, nodes + 1):
        _do(f"ip netns add node{k}")
        _do(f"ip link add veth{k} type veth peer name eth0 netns node{k}")
        _do(f"ip link set veth{k} master br0 up")
        _do(f"ip -n node{k} addr add {NETWORK}.{k}/24 dev eth0")
        for device in ("lo", "eth0"):
            _do(f"ip -n node{k} link set {device} up")
        if rate:
            shaping = f"root tbf rate {rate} burst 256kb latency 50ms"
            _do(f"tc -n node{k} qdisc add dev eth0 {shaping}")


def _launcher(folder, own):
    """A program in the place of ssh, which mpiexec calls with options, an address and a command."""
    words = [sys.executable, __file__, "--enter", folder, *(f"--own={path}" for path in own)]
    launcher = folder / "launcher"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} -- "$@"\n')
    launcher.chmod(0o755)
    return launcher


def _enter(folder, own, arguments):
    """Become a command on a node, with the node's own folders in the places of the common ones."""
    while arguments[0].startswith("-"):  # options of ssh
        arguments = arguments[1:]
    node = f"node{arguments[0].rpartition('.')[2]}"
    lines = [f"hostname {node}"]
    for number, path in enumerate(own):
        inner = folder / node / str(number)
        inner.mkdir(parents=True, exist_ok=True)
        lines.append(shlex.join(["mount", "--bind", str(inner), path]))
    lines.append(f"exec {' '.join(arguments[1:])}")
    enter = ["nsenter", f"--net=/run/netns/{node}", "unshare", "--uts", "--mount"]
    os.execvp("nsenter", [*enter, "sh", "-c", " && ".join(lines)])


def _run(options, folder):
    """Run the program; the exit status of mpiexec."""
    _lay_network(options.nodes, options.rate)
    hosts = ",".join(f"{NETWORK}.{k}" for k in range(1, options.nodes + 1))
    launch = ["-launcher", "ssh", "-launcher-exec", _launcher(folder, options.own)]
    where = [
        "-localhost",
        f"{NETWORK}.254",
        "-hosts",
        hosts,
        "-ppn",
        -(-options.n // options.nodes),
    ]
    settings = [word for name, value in OVER_TCP.items() for word in ("-genv", name, value)]
    words = ["mpiexec", *launch, *where, *settings, "-n", options.n, sys.executable]
    return subprocess.run([*map(str, words), *options.program], check=False).returncode


def _parsed():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--own", action="append", default=[], help="a folder, existing")
    parser.add_argument("--rate", help="at which a node sends, such as 1gbit")
    parser.add_argument("-n", type=int, default=2, help="ranks")
    parser.add_argument("--enter", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("program", nargs=argparse.REMAINDER)
    return parser.parse_args()


def main():
    """Run the command line, in namespaces that this process enters first."""
    options = _parsed()
    if options.enter:
        _enter(options.enter, options.own, options.program[1:])
    if not options.inside:
        words = ["unshare", *OUTER, "--mount-proc", sys.executable, __file__, "--inside"]
        os.execvpe("unshare", [*words, *sys.argv[1:]], _environment())
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(_run(options, Path(folder)))


if __name__ == "__main__":
    main()
