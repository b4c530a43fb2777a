"""Ports of this machine, its names, and whether two training processes find each other."""

from __future__ import annotations

import os
import socket
import sys
import threading
import urllib.request
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

from nextflow_orchestration.doctor.check import Case, Diagnosis, bad, check, ok

_MEETING = timedelta(seconds=25)


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"doctor")


@check("network", "loopback")
def loopback(case: Case) -> Diagnosis:
    """A server on 127.0.0.1, asked as Prefect's is: also by way of whatever proxy the environment names."""
    with HTTPServer(("127.0.0.1", 0), _Answer) as server:
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                said = answer.read()
        except OSError as error:
            said, why = b"", str(error)
        else:
            why = "something else answered"
        server.shutdown()
    if said == b"doctor":
        return ok("a server on 127.0.0.1 is reached")
    proxy = urllib.request.getproxies().get("http")
    if proxy and not urllib.request.proxy_bypass("127.0.0.1"):
        return bad(f"http_proxy is {proxy}, and takes what is for 127.0.0.1: {why}", "export NO_PROXY=127.0.0.1,localhost")
    return bad(f"a server on 127.0.0.1:{port} is not reached: {why}", "look for a firewall on the loopback interface")


@check("network", "localhost")
def localhost(case: Case) -> Diagnosis:
    """The name."""
    try:
        found = sorted({entry[4][0] for entry in socket.getaddrinfo("localhost", None)}, key=str)
    except OSError as error:
        return bad(f"localhost does not resolve: {error}", "add '127.0.0.1 localhost' to /etc/hosts")
    if not {"127.0.0.1", "::1"} & set(found):
        return bad(f"localhost is {', '.join(map(str, found))}", "add '127.0.0.1 localhost' to /etc/hosts")
    return ok(", ".join(map(str, found)))


@check("network", "gloo", seconds=60)
def gloo(case: Case) -> Diagnosis:
    """Two processes meet and add up a number, over the interface that torch takes by itself."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    other = os.fork()
    rank = 0 if other else 1
    try:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timeout=_MEETING, world_size=2, rank=rank)
        total = torch.ones(1)
        dist.all_reduce(total)
        dist.destroy_process_group()
        said = "" if total.item() == 2 else f"the sum of 1 and 1 is {total.item():g}"
    except (RuntimeError, ValueError, OSError) as error:
        said = str(error).strip().splitlines()[0]
    if rank:
        print(said, file=sys.stderr, flush=True)
        os._exit(1 if said else 0)
    if not said and os.waitpid(other, 0)[1] == 0:
        return ok("two processes of torch.distributed meet")
    name = socket.gethostname()
    advice = f"export GLOO_SOCKET_IFNAME=lo, or give this machine's name ({name}) an address of its own in /etc/hosts"
    return bad(f"two processes of torch.distributed do not meet: {said or 'the second failed'}", advice)
