"""Processes on a TCP link with latency and bandwidth, each in a network namespace of its own: Linux, as root.

`Network` makes a TUN device for each process, and forwards what goes through: a packet leaves when the one before it to
the same process has left, at the bandwidth of the link, and arrives a latency later. So gloo meets what it meets
between two machines: that it asks for a message and waits for it, and TCP's windows.
"""

import ctypes
import fcntl
import heapq
import itertools
import math
import multiprocessing
import os
import select
import socket
import struct
import subprocess
import time

from pipeline_links import Link

_DEVICE = "t0"
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_SET_INTERFACE = 0x400454CA  # TUNSETIFF
_PACKETS = 0x1001  # IFF_TUN | IFF_NO_PI
_MTU = 60_000  # bytes: few packets


def address(rank: int) -> str:
    return f"10.9.0.{rank + 1}"


class Network:
    """Made before the processes are forked, with `link` for all; each calls `enter`."""

    def __init__(self, ranks: int) -> None:
        context = multiprocessing.get_context("fork")
        self._values = context.RawArray("d", [0.0, math.inf])
        self._sockets = [socket.socketpair() for _ in range(ranks)]
        self._forwarder = context.Process(target=self._forward, daemon=True)
        self._forwarder.start()

    @property
    def link(self) -> Link:
        return Link(*self._values)

    @link.setter
    def link(self, link: Link) -> None:
        self._values[:] = [link.latency, link.bandwidth]

    def enter(self, rank: int) -> None:
        """Put this process into its namespace, and let gloo use its device."""
        if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "no network namespace; run as root")
        device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(device, _SET_INTERFACE, struct.pack("16sH", _DEVICE.encode(), _PACKETS))
        for line in ("set lo up", f"set {_DEVICE} mtu {_MTU} up"):
            subprocess.run(["ip", "link", *line.split()], check=True)
        subprocess.run(["ip", "addr", "add", f"{address(rank)}/24", "dev", _DEVICE], check=True)
        socket.send_fds(self._sockets[rank][1], [b" "], [device])
        os.environ["GLOO_SOCKET_IFNAME"] = _DEVICE

    def stop(self) -> None:
        self._forwarder.kill()
        self._forwarder.join()

    def _forward(self) -> None:
        devices = [socket.recv_fds(pair[0], 1, 1)[1][0] for pair in self._sockets]
        to = {socket.inet_aton(address(rank)): device for rank, device in enumerate(devices)}
        free = dict.fromkeys(devices, 0.0)  # when the last packet to it has left
        numbers = itertools.count()
        on_the_way: list[tuple[float, int, int, bytes]] = []  # when it arrives, its number, the device, the packet
        while True:
            now = time.monotonic()
            while on_the_way and on_the_way[0][0] <= now:
                _, _, device, packet = heapq.heappop(on_the_way)
                os.write(device, packet)
            seconds = max(0.0, on_the_way[0][0] - now) if on_the_way else None
            for source in select.select(devices, [], [], seconds)[0]:
                packet = os.read(source, 2**16)
                target = to.get(packet[16:20])  # of the header of IPv4
                if target is None:
                    continue
                latency, bandwidth = self._values
                free[target] = max(time.monotonic(), free[target]) + len(packet) / bandwidth
                heapq.heappush(on_the_way, (free[target] + latency, next(numbers), target, packet))
