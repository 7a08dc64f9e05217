"""entries.py PROXY CONFIG CACHE URL ENTRIES JSON: what many entries cost the proxy.

Starts it over CACHE, where the answer to URL lies, and again with so many entries beside it. Says how
long it takes from exec to the first hit and to the end of the scan, how hits fare meanwhile and
afterwards, and what an entry costs in memory. The names are in the kernel's memory: they have just
been made.
"""

import hashlib
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import time

PATIENCE = 120

# As the configuration has them.
PROXY = ("127.0.0.3", 17080)
API = ("127.0.0.3", 17081)


def main():
    proxy, config, cache, url, entries, out = sys.argv[1:]
    entries = int(entries)

    def start():
        return Proxy(proxy, config, url)

    with start() as alone:
        alone.wait_for_scan()
        base = alone.rss_kib()
    make(pathlib.Path(cache) / "blobs/sha256", entries)
    with start() as many:
        first_hit = many.since_exec()
        meanwhile, scanned = many.wait_for_scan()
        afterwards = [many.hit() for _ in range(2000)]
        rss = many.rss_kib()
    result = {
        "name": "many entries",
        "entries": entries,
        "first_hit_ms": first_hit * 1e3,
        "scan_s": scanned,
        "bytes_per_entry": (rss - base) * 1024 / entries,
        "hit_us_meanwhile": median_us(meanwhile),
        "hit_us_afterwards": median_us(afterwards),
        "errors": 0,
        "wrong": 0,
    }
    pathlib.Path(out).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result), file=sys.stderr)


def median_us(times):
    return statistics.median(times) * 1e6 if times else None


def make(folder, entries):
    """Bodies are files of their own; what lies in a .meta no scan reads."""
    meta, links = None, 0
    for n in range(entries):
        name = folder / hashlib.sha256(b"%d" % n).hexdigest()
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o640))
        if links % 50_000 == 0:
            meta = f"{name}.meta"
            os.close(os.open(meta, os.O_CREAT | os.O_WRONLY, 0o640))
        else:
            os.link(meta, f"{name}.meta")
        links += 1


class Proxy:
    def __init__(self, binary, config, url):
        self.begin = time.monotonic()
        command = ["taskset", "-c", "0", binary, "--config", config]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.socket = self.dial()
        host = url.split("/")[2]
        self.request = f"GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        self.hit()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)

    def dial(self):
        while True:
            try:
                return socket.create_connection(PROXY, PATIENCE)
            except ConnectionRefusedError:
                if self.process.poll() is not None or self.since_exec() > PATIENCE:
                    sys.exit("entries.py: the proxy does not listen")
                time.sleep(0.0005)

    def since_exec(self):
        return time.monotonic() - self.begin

    def hit(self):
        """Seconds it took."""
        begin = time.monotonic()
        self.socket.sendall(self.request)
        got = b""
        while b"\r\n\r\n" not in got:
            got += self.read()
        head, body = got.split(b"\r\n\r\n", 1)
        if b"\r\nx-cache: hit\r\n" not in head.lower() + b"\r\n":
            sys.exit(f"entries.py: no hit: {head}")
        left = int(re.search(rb"(?i)content-length: *(\d+)", head)[1]) - len(body)
        while left > 0:
            left -= len(self.read())
        return time.monotonic() - begin

    def read(self):
        got = self.socket.recv(65536)
        if not got:
            sys.exit("entries.py: the proxy closed the connection")
        return got

    def is_scanning(self):
        with socket.create_connection(API, PATIENCE) as api:
            request = f"GET /health HTTP/1.1\r\nHost: {API[0]}\r\nConnection: close\r\n\r\n"
            api.sendall(request.encode())
            answer = b"".join(iter(lambda: api.recv(65536), b""))
        return json.loads(answer.split(b"\r\n\r\n", 1)[1])["scanning"]

    def wait_for_scan(self):
        """What hits took meanwhile, and when the scan was done."""
        times = []
        while self.is_scanning():
            times += [self.hit() for _ in range(50)]
            if self.since_exec() > PATIENCE:
                sys.exit("entries.py: the scan does not end")
        return times, self.since_exec()

    def rss_kib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


main()
