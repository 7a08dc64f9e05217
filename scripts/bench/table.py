"""table.py RESULTS: one Markdown table of medians from the runs' JSON files, with what each figure of
the proxy is to reach and whether it does."""

import collections
import json
import pathlib
import statistics
import sys

SERVERS = ["floor", "direct", "proxy", "nginx", "squid", "ats", "haproxy"]
PEERS = ["nginx", "squid", "ats", "haproxy"]

# A run of whose core others had more than this is left out where there are better ones.
OTHERS_MAX = 0.1


class Limit:
    """At most (or at least) `factor` times the figure `of` a server or of another row of the proxy's;
    without `of` just that, and `plus` on top."""

    def __init__(self, factor, of=None, row=None, plus=0.0, least=False):
        self.factor, self.of, self.row, self.plus, self.least = factor, of, row, plus, least

    def judge(self, figures, row, title, value):
        """In words, and whether it is reached; the latter is None where nothing was measured."""
        base = 1.0
        if self.of or self.row:
            servers = figures.get((self.row or row, title), {})
            base = best(servers, self.least) if self.of == "best peer" else servers.get(self.of or "proxy")
        sign = "≥" if self.least else "≤"
        what = self.of or self.row
        words = f"{sign} {self.factor:g}" + (f" × {what}" if what else "")
        if self.plus:
            words = f"{sign} {what} + {self.plus:g}"
        if base is None or value is None:
            return words, None
        limit = base * self.factor + self.plus
        if what and not self.plus and base:
            words += f" ({value / base:.2f})"
        return words, value >= limit if self.least else value <= limit


def best(servers, most):
    values = [servers[peer] for peer in PEERS if peer in servers]
    return (max if most else min)(values) if values else None


def at_most(factor, of=None, **more):
    return Limit(factor, of, **more)


def at_least(factor, of=None, **more):
    return Limit(factor, of, least=True, **more)


def cpu_s_per_gb(run):
    return run.get("cpu_s_per_gb")


def cpu_us(run):
    return run.get("cpu_us_per_request")


def p99(run):
    return run["latency_ms"]["p99"] if run["requests"] else None


def rate_beside(run):
    return run["beside"]["gb_per_second"]


# What a row is judged by: the row's beginning, the figure, how it is read, its digits, its limits.
FIGURES = [
    ("big hits, plain", "CPU s/GB", cpu_s_per_gb, 3, [at_most(1.10, "floor"), at_most(0.95, "nginx")]),
    ("big hits, plain", "GB/s", lambda r: r["gb_per_second"], 2, [at_least(1, "nginx")]),
    ("big hits, TLS", "CPU s/GB", cpu_s_per_gb, 3,
     [at_most(1.15, "floor"), at_most(0.45, "nginx"), at_most(0.17, "squid")]),
    ("big hits, TLS", "GB/s", lambda r: r["gb_per_second"], 2, []),
    ("ranges", "CPU us", cpu_us, 1, []),
    ("small hits, plain", "CPU us", cpu_us, 1, [at_most(0.65, "nginx")]),
    ("small hits, TLS", "CPU us", cpu_us, 1, [at_most(0.80, "nginx")]),
    ("small hits", "requests/s", lambda r: r["requests_per_second"], 0, []),
    ("small hits", "p99 ms", p99, 2, []),
    ("logged small hits, plain", "CPU us", cpu_us, 1, [at_most(1.15, row="small hits, plain, 64")]),
    ("logged small hits, TLS", "CPU us", cpu_us, 1, [at_most(1.15, row="small hits, TLS, 64")]),
    ("new connection", "CPU us", cpu_us, 0, [at_most(0.55, "squid"), at_most(1.1, "nginx")]),
    ("small beside 8 big, plain", "p99 ms", p99, 2, [at_most(2)]),
    ("small beside 8 big, TLS", "p99 ms", p99, 2, [at_most(3)]),
    ("small beside 8 big, a stuck client, a cold file, plain", "p99 ms", p99, 2,
     [at_most(1.25, row="small beside 8 big, plain")]),
    ("small beside 8 big, a stuck client, a cold file, TLS", "p99 ms", p99, 2,
     [at_most(1.25, row="small beside 8 big, TLS")]),
    ("small beside", "GB/s beside", rate_beside, 2, []),
    ("cold", "CPU s/GB", cpu_s_per_gb, 2, [at_most(1, "nginx")]),
    ("cold", "s", lambda r: r["seconds"], 2, [at_most(1.15, "direct")]),
    ("first byte", "p50 ms", lambda r: r["latency_ms"]["p50"], 2, [at_most(1, "direct", plus=1.0)]),
    ("50 clients", "s", lambda r: r["seconds"], 2, [at_most(1.2, "best peer")]),
    ("50 clients", "CPU s/GB", cpu_s_per_gb, 2, []),
    ("50 clients", "× from upstream", lambda r: r.get("upstream"), 2, [at_most(1.001)]),
    ("1000 clients", "s", lambda r: r["seconds"], 1, [at_most(1.2, "best peer")]),
    ("1000 clients", "× from upstream", lambda r: r.get("upstream"), 2, [at_most(1.001)]),
    ("relayed", "CPU s/GB", cpu_s_per_gb, 3, [at_most(1, "best peer")]),
    ("two workers, small", "CPU us", cpu_us, 1, []),
    ("two workers, big", "CPU s/GB", cpu_s_per_gb, 3, []),
    ("at rest", "MB", lambda r: r["rss_before_kib"] * 1024 / 1e6, 1, [at_most(15)]),
    ("idle connections, plain", "KiB each", lambda r: r["kib_per_connection"], 2, [at_most(3)]),
    ("idle connections, TLS", "KiB each", lambda r: r["kib_per_connection"], 2, [at_most(20)]),
    ("many idle connections, plain", "KiB each", lambda r: r["kib_per_connection"], 2, [at_most(3)]),
    ("many idle connections, TLS", "KiB each", lambda r: r["kib_per_connection"], 2, [at_most(20)]),
    ("many idle", "held", lambda r: r["connections"], 0, [at_least(20000)]),
    ("many entries", "bytes each", lambda r: r["bytes_per_entry"], 0, [at_most(150)]),
    ("many entries", "first hit, ms", lambda r: r["first_hit_ms"], 1, [at_most(100)]),
    ("many entries", "scanned, s", lambda r: r["scan_s"], 1, [at_most(10)]),
    ("many entries", "a hit meanwhile, us", lambda r: r["hit_us_meanwhile"], 0, []),
    ("many entries", "a hit afterwards, us", lambda r: r["hit_us_afterwards"], 0, []),
]

# Two rows of the proxy's in one figure: the row and figure where it stands, what it is called, the
# row and figure beside it, what is made of the two, the limit.
BETWEEN = [
    ("small beside 8 big, plain", "GB/s beside", "× alone", ("big hits, plain, 8", "GB/s"),
     lambda own, other: own / other, at_least(0.9)),
    ("small beside 8 big, TLS", "GB/s beside", "× alone", ("big hits, TLS, 8", "GB/s"),
     lambda own, other: own / other, at_least(0.9)),
    # A load on a core of its own is more than two cores have: what two can do follows from what a
    # request costs them.
    ("two workers, small hits, plain, 64", "CPU us", "× one", ("small hits, plain, 64", "CPU us"),
     lambda own, other: 2 * other / own, at_least(1.85)),
    ("two workers, big hits, TLS, 8", "CPU s/GB", "× one", ("big hits, TLS, 8", "CPU s/GB"),
     lambda own, other: 2 * other / own, at_least(1.85)),
    ("many entries", "a hit meanwhile, us", "× afterwards", ("many entries", "a hit afterwards, us"),
     lambda own, other: own / other, at_most(1.5)),
]


def main():
    runs, bad, left_out = read(pathlib.Path(sys.argv[1]))
    figures = collections.OrderedDict()
    digits = {}
    for beginning, title, figure, places, _ in FIGURES:
        for row, servers in runs.items():
            if row.startswith(beginning):
                values = medians(servers, figure)
                if values:
                    figures[row, title] = values
                    digits[row, title] = places
    for row, title, called, other, made, limit in BETWEEN:
        own, beside = figures.get((row, title), {}), figures.get(other, {})
        both = [server for server in own if beside.get(server)]
        if both:
            figures[row, called] = {server: made(own[server], beside[server]) for server in both}
            digits[row, called] = 2
    limits = {}
    for beginning, title, _, _, some in FIGURES:
        for row, of in figures:
            # A longer beginning that fits says it more exactly.
            if of == title and row.startswith(beginning) and some:
                limits[row, title] = some
    limits.update({(row, called): [limit] for row, _, called, _, _, limit in BETWEEN})
    show(figures, digits, limits, runs)
    print(f"\nErrors and wrong bodies: {bad}. Runs left out because others used the core: {left_out}.")


def read(results):
    """Runs by row and server, errors in all of them, and how many are left out."""
    runs, bad, left_out = {}, 0, 0
    for path in sorted(results.glob("*.json")):
        server = path.name.split(".")[-3]
        run = json.loads(path.read_text())
        for part in (run, run.get("beside", {"errors": 0, "wrong": 0})):
            bad += part["errors"] + part["wrong"]
        runs.setdefault(run["name"], {}).setdefault(server, []).append(run)
    for servers in runs.values():
        for server, all_of_it in servers.items():
            calm = [run for run in all_of_it if run.get("others", 0) <= OTHERS_MAX]
            if calm:
                left_out += len(all_of_it) - len(calm)
                servers[server] = calm
    return runs, bad, left_out


def medians(servers, figure):
    found = {}
    for server, runs in servers.items():
        values = [figure(run) for run in runs]
        values = [value for value in values if value is not None]
        if values:
            found[server] = statistics.median(values)
    return found


def show(figures, digits, limits, runs):
    used = [server for server in SERVERS if any(server in values for values in figures.values())]
    print("| row | | " + " | ".join(used) + " | runs | to reach (ratio) | reached |")
    print("|---|---|" + "---:|" * (len(used) + 1) + "---|---|")
    # Figures of one row stand together, rows in the order of the list above.
    rows = list(dict.fromkeys(row for row, _ in figures))
    for row, title in sorted(figures, key=lambda at: rows.index(at[0])):
        values = figures[row, title]
        places = digits[row, title]
        cells = [f"{values[one]:.{places}f}" if one in values else "-" for one in used]
        judged = [one.judge(figures, row, title, values.get("proxy")) for one in limits.get((row, title), [])]
        reached = ", ".join("-" if is_it is None else "yes" if is_it else "**no**" for _, is_it in judged)
        count = str(len(runs[row].get("proxy", next(iter(runs[row].values())))))
        cells = [row, title, *cells, count, ", ".join(words for words, _ in judged), reached]
        print("| " + " | ".join(cells) + " |")


main()
