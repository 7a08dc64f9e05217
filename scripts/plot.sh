#!/usr/bin/env bash
# plot.sh RESULTS [FOLDER]: pictures (SVG) of a run of bench.sh, beside its figures or in that folder:
# the latencies of each row by percentile, one line for each server, and the throughput and the CPU
# seconds of the big hits. Of the first round; needs gnuplot and python3.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ] || [ ! -d "$1" ]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
out=$(realpath "${2:-$1}")
cd "$1"
servers="floor direct proxy nginx squid ats"

# The same for each server in every picture, the proxy's the boldest.
style() {
  case $1 in
    floor) echo "lw 2 dt 2 lc rgb '#777777'" ;;
    direct) echo "lw 2 dt 3 lc rgb '#777777'" ;;
    proxy) echo "lw 4 lc rgb '#0060ad'" ;;
    nginx) echo "lw 2 lc rgb '#009e73'" ;;
    squid) echo "lw 2 lc rgb '#cc4c02'" ;;
    ats) echo "lw 2 lc rgb '#9b59b6'" ;;
  esac
}

# title FILE: the row's name.
title() { sed -n 's/^ *"name": "\(.*\)",*$/\1/p' "$1" | tail -n 1; }

latencies() {
  local row=$1 server name="" lines=""
  for server in $servers; do
    # A slow server may have finished no big body in time.
    grep -q 'Total count.*[1-9]' "$row.$server.1.hgrm" 2>/dev/null || continue
    # The last percentile is "inf", the one before it the last that can be drawn.
    lines+="${lines:+, }'$row.$server.1.hgrm' using (\$4 > 0 ? \$4 : NaN):1 with steps $(style "$server") title '$server'"
    name=$(title "$row.$server.1.json")
  done
  [ -n "$lines" ] || return 0
  gnuplot <<PLOT
set terminal svg size 800,480 font 'sans-serif,14' background rgb 'white'
set output '$out/$row.svg'
set title '$name: latency' noenhanced
set datafile commentschars '#V'
set datafile missing 'inf'
set logscale xy
set format y '%g'
set xlabel 'percentile'
set ylabel 'ms'
set xtics ('0' 1, '50' 2, '90' 10, '99' 100, '99.9' 1000, '99.99' 10000)
set xrange [1:10000]
set key left top
set grid
plot $lines
PLOT
}

# bars FIGURE LABEL: of the big hits, by row, one bar for each server.
bars() {
  local data lines="" server column=2 found=""
  # Upstream itself gives no hits, and not every server is installed.
  for server in $servers; do
    ! compgen -G "big-hits*.$server.1.json" >/dev/null || found+="$server "
  done
  local servers=$found
  data=$(mktemp)
  python3 - "$1" $servers >"$data" <<'PYTHON'
import json, pathlib, sys
figure, *servers = sys.argv[1:]
rows = {}
for path in sorted(pathlib.Path(".").glob("big-hits*.1.json")):
    run = json.loads(path.read_text())
    rows.setdefault(run["name"], {})[path.name.split(".")[-3]] = run.get(figure)
for row, found in rows.items():
    print(f'"{row}"', *(found.get(server) or "NaN" for server in servers))
PYTHON
  for server in $servers; do
    lines+="${lines:+, }'$data' using $column:xtic(1) title '$server' $(style "$server" | grep -o 'lc rgb .*')"
    column=$((column + 1))
  done
  if [ -s "$data" ]; then
    gnuplot <<PLOT
set terminal svg size 800,480 font 'sans-serif,14' background rgb 'white'
set output '$out/$1.svg'
set title 'big hits, $2'
set style data histogram
set style histogram cluster gap 1
set style fill solid 0.8 border
set yrange [0:*]
set ylabel '$2'
set xtics noenhanced
set key outside right top
set grid y
plot $lines
PLOT
  fi
  rm -f "$data"
}

for file in *.1.hgrm; do
  [ -e "$file" ] || continue
  name=${file%.1.hgrm}
  printf '%s\n' "${name%.*}"
done | sort -u | while read -r row; do
  latencies "$row"
done
bars gb_per_second 'GB/s'
bars cpu_s_per_gb 'CPU seconds per GB'
ls -- "$out"/*.svg
