#!/usr/bin/env bash
# plot.sh RESULTS: pictures (SVG) beside the figures of a run of bench.sh: the latencies of each row by
# percentile, one line for each server, and the throughput of the big hits. Of the first round; needs
# gnuplot.
set -euo pipefail

if [ $# -ne 1 ] || [ ! -d "$1" ]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
cd "$1"
servers="floor proxy nginx squid"

latencies() {
  local row=$1 server file lines=""
  for server in $servers; do
    file=$row.$server.1.hgrm
    [ ! -s "$file" ] || lines+="${lines:+, }'$file' using 4:1 with lines lw 2 title '$server'"
  done
  [ -n "$lines" ] || return 0
  gnuplot <<PLOT
set terminal svg size 800,480 background rgb 'white'
set output '$row.svg'
set title '${row//--/, }' noenhanced
set datafile commentschars '#V'
set logscale xy
set xlabel 'percentile'
set ylabel 'ms'
set xtics ('50' 2, '90' 10, '99' 100, '99.9' 1000, '99.99' 10000)
set xrange [1:10000]
set key left top
set grid
plot $lines
PLOT
}

throughput() {
  local file name row server data
  data=$(mktemp)
  trap 'rm -f "$data"' RETURN
  for file in big-hits*.1.json; do
    [ -e "$file" ] || return 0
    name=${file%.1.json}
    row=${name%.*} server=${name##*.}
    printf '"%s %s" %s\n' "${row#big-hits--}" "$server" \
      "$(sed -n 's/^  "gb_per_second": \([0-9.]*\).*/\1/p' "$file")"
  done >"$data"
  gnuplot <<PLOT
set terminal svg size 1000,480 background rgb 'white'
set output 'throughput.svg'
set title 'big hits, GB/s'
set style fill solid 0.6
set boxwidth 0.7
set yrange [0:*]
set xtics rotate by -40 noenhanced
set grid y
plot '$data' using 0:2:xtic(1) with boxes notitle
PLOT
}

for file in *.1.hgrm; do
  [ -e "$file" ] || continue
  name=${file%.1.hgrm}
  printf '%s\n' "${name%.*}"
done | sort -u | while read -r row; do
  latencies "$row"
done
throughput
ls -- *.svg
