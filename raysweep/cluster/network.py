"""Chooses the network interface over which workers talk to each other.

By default, gloo takes the interface that the host's own name resolves to, which on many hosts is loopback. NCCL takes
the first interface that it finds. Ray knows the address at which other nodes reach this one, so its interface is
chosen.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from ray.util import get_node_ip_address

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
NAMED = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}  # without =, NCCL takes the value as a prefix


def choose_interface() -> None:
    """Set the environment variables by which gloo and NCCL choose, unless the user has set them. Runs in every new
    process of a job on a cluster."""
    name = interface_of(get_node_ip_address())
    if name and name != "lo":
        for variable, form in NAMED.items():
            os.environ.setdefault(variable, form.format(name))


def interface_of(address: str) -> str | None:
    """The name of the interface that has this IPv4 address, if any has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # this interface has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
