# shellcheck shell=bash
# Sourced by bench.sh: what is measured. Each run leaves a JSON file ROW.SERVER.ROUND.json and the
# percentiles of its latencies beside it.

# rows SERVER ROUND: all rows of one server; cold ones first, which fill the cache for the others.
rows() {
  local server=$1 round=$2
  "start_$server"
  case $server in
    proxy | squid | haproxy)
      ca=$scratch/tls/ca.crt \
        run "relayed CONNECT, 1" "https://127.0.0.4:18443$BIG" tls -n 2 --body drop
      ;;
  esac
  if [ "$server" = haproxy ]; then
    stop_server
    return
  fi
  cold_rows
  local body=drop
  [ "$short" = no ] || body=hash
  fill
  hits "big hits, plain, 8" "$plain$BIG" plain -c 8 --body "$body"
  hits "big hits, plain, 64" "$plain$BIG" plain -c 64 --body "$body"
  hits "big hits, TLS, 8" "$tls$BIG" tls -c 8 --body "$body"
  hits "big hits, TLS, 64" "$tls$BIG" tls -c 64 --body "$body"
  body=read
  [ "$short" = no ] || body=hash
  hits "small hits, plain, 64" "$plain$SMALL" plain -c 64 --body "$body"
  hits "small hits, TLS, 64" "$tls$SMALL" tls -c 64 --body "$body"
  hits "new connection, TLS, small hit, 8" "$tls$SMALL" tls -c 8 --new-connection --body "$body"
  # The floor knows no ranges.
  [ "$server" = floor ] || hits "ranges of 64 KiB, TLS, 64" "$tls$BIG" tls -c 64 --range 65536 --body "$body"
  # Far below what any of them can do, so that it is the big ones that make them wait.
  local rate=500
  beside "small beside 8 big, plain" "$plain$SMALL" plain -c 16 --rate $rate --beside "$plain$BIG"
  beside "small beside 8 big, TLS" "$tls$SMALL" tls -c 16 --rate $rate --beside "$tls$BIG"
  idle
  stop_server
}

wanted() { [[ $1 =~ $only ]]; }

# So that what follows are hits.
fill() {
  local url
  for url in "$BIG" "$SMALL"; do
    "$LOAD" --ca "$ca" "${plain_way[@]}" -n 1 --body hash "$plain$url" >/dev/null
    "$LOAD" --ca "$ca" "${tls_way[@]}" -n 1 --body hash "$tls$url" >/dev/null
  done
}

# The origin serves on the load's core, so times are of both; CPU is the server's alone.
cold_rows() {
  [ "$server" != floor ] || return 0
  run "cold big, TLS, 1" "$tls$BIG" tls -n 1 --body hash
  local before
  before=$(asked)
  run "50 clients, one cold blob, TLS" "$tls$MEDIUM" tls -c 50 -n 50 --body read
  no_more_than 1 "$before"
}

hits() {
  local row=$1 url=$2 way=$3
  shift 3
  wanted "$row" || return 0
  # A manifest that came from one upstream is no hit for the other, which is the same with TLS.
  if [ "$way" = tls ]; then
    "$LOAD" --ca "$ca" "${tls_way[@]}" -n 1 "$url" >/dev/null
  else
    "$LOAD" --ca "$ca" "${plain_way[@]}" -n 1 "$url" >/dev/null
  fi
  local before
  before=$(asked)
  if [ "$short" = yes ]; then
    # Bodies that end, so that they can be checked; twice on each connection.
    run "$row" "$url" "$way" -n 128 "$@"
  else
    run "$row" "$url" "$way" --warm-up 1 --duration "$seconds" "$@"
  fi
  no_more_than 0 "$before"
}

beside() {
  local row=$1 url=$2 way=$3
  shift 3
  run "$row" "$url" "$way" --warm-up 1 --duration "$seconds" "$@"
}

# How often upstream was asked so far.
asked() { wc -l <"$scratch/origin/access.log"; }

# no_more_than COUNT BEFORE: what is measured as a hit must be one.
no_more_than() {
  local more=$(($(asked) - $2))
  [ "$more" -gt "$1" ] || return 0
  echo "bench.sh: $server asked upstream $more times, $1 at most are right" >&2
  wrong=$((wrong + 1))
}

# run ROW URL plain|tls OPTIONS...
run() {
  local row=$1 url=$2 way=$3 of=$pid name options
  shift 3
  wanted "$row" || return 0
  options=("${plain_way[@]}")
  if [ "$way" = tls ]; then
    options=("${tls_way[@]}")
    of=$tls_pid
  fi
  name=$(tr -c 'A-Za-z0-9\n' '-' <<<"$row").$server.$round
  printf '== %s: %s (round %s)\n' "$row" "$server" "$round" >&2
  if ! taskset -c 1 "$LOAD" --name "$row" --pid "$of" --ca "$ca" "${options[@]}" "$@" \
    --json "$results/$name.json" --hgrm "$results/$name.hgrm" "$url" >&2; then
    wrong=$((wrong + 1))
  fi
}

idle() {
  local count=2000
  [ "$short" = no ] || count=50
  local way url of row
  for way in plain tls; do
    row="idle connections, $way"
    wanted "$row" || continue
    if [ "$way" = plain ]; then
      url=$plain$SMALL of=$pid options=("${plain_way[@]}")
    else
      url=$tls$SMALL of=$tls_pid options=("${tls_way[@]}")
    fi
    printf '== %s: %s (round %s)\n' "$row" "$server" "$round" >&2
    (
      ulimit -n 65536 2>/dev/null || true
      exec taskset -c 1 "$LOAD" --idle -c $count --name "$row" --pid "$of" --ca "$ca" "${options[@]}" \
        --json "$results/idle-$way.$server.$round.json" "$url"
    ) >&2 || wrong=$((wrong + 1))
  done
}
