"""table.py RESULTS: one Markdown table of medians from the runs' JSON files."""

import json
import pathlib
import statistics
import sys

SERVERS = ["floor", "proxy", "nginx", "squid", "haproxy"]
# What a row is judged by: the row's beginning, the figure, its digits.
FIGURES = [
    ("small beside", "p99 ms", lambda r: r["latency_ms"]["p99"], 2),
    ("small beside", "GB/s beside", lambda r: r["beside"]["gb_per_second"], 2),
    ("cold", "CPU s/GB", lambda r: r["cpu_s_per_gb"], 2),
    ("cold", "s", lambda r: r["seconds"], 2),
    ("50 clients", "s", lambda r: r["seconds"], 2),
    ("50 clients", "CPU s/GB", lambda r: r["cpu_s_per_gb"], 2),
    ("big", "CPU s/GB", lambda r: r["cpu_s_per_gb"], 3),
    ("big", "GB/s", lambda r: r["gb_per_second"], 2),
    ("relayed", "CPU s/GB", lambda r: r["cpu_s_per_gb"], 3),
    ("small hits", "CPU us", lambda r: r["cpu_us_per_request"], 1),
    ("small hits", "requests/s", lambda r: r["requests_per_second"], 0),
    ("small hits", "p99 ms", lambda r: r["latency_ms"]["p99"], 2),
    ("new connection", "CPU us", lambda r: r["cpu_us_per_request"], 0),
    ("ranges", "CPU us", lambda r: r["cpu_us_per_request"], 1),
    ("idle", "KiB each", lambda r: r["kib_per_connection"], 2),
]


def main():
    runs = {}
    bad = 0
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
        server = path.name.split(".")[-3]
        run = json.loads(path.read_text())
        for part in (run, run.get("beside", {"errors": 0, "wrong": 0})):
            bad += part["errors"] + part["wrong"]
        runs.setdefault(run["name"], {}).setdefault(server, []).append(run)
    used = [server for server in SERVERS if any(server in row for row in runs.values())]
    columns = ["row", "", *used, "proxy / floor", "proxy / nginx", "proxy / squid", "proxy / haproxy"]
    print("| " + " | ".join(columns) + " |")
    print("|---|---|" + "---:|" * (len(columns) - 2))
    for row, servers in runs.items():
        for beginning, title, figure, digits in FIGURES:
            if row.startswith(beginning):
                print(line(row, title, medians(servers, figure), digits, used))
    print(f"\nErrors and wrong bodies: {bad}.")


def medians(servers, figure):
    found = {}
    for server, runs in servers.items():
        values = [figure(run) for run in runs]
        values = [value for value in values if value is not None]
        if values:
            found[server] = statistics.median(values)
    return found


def line(row, title, values, digits, used):
    def ratio(to):
        if "proxy" not in values or not values.get(to):
            return "-"
        return f"{values['proxy'] / values[to]:.2f}"

    cells = [f"{values[server]:.{digits}f}" if server in values else "-" for server in used]
    cells = [row, title, *cells, ratio("floor"), ratio("nginx"), ratio("squid"), ratio("haproxy")]
    return "| " + " | ".join(cells) + " |"


main()
