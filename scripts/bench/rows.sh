# shellcheck shell=bash
# Sourced by bench.sh: what is measured. Each run leaves a JSON file ROW.SERVER.ROUND.json and the
# percentiles of its latencies beside it; table.py knows the rows by their names.

# rows SERVER ROUND: all rows of one server; cold ones first, which fill the cache for the others.
rows() {
  local server=$1 round=$2
  local -A filled=()
  "start_$server"
  case $server in
    haproxy) relayed_rows ;;
    direct) cold_rows ;;
    logged | two | entries) server=proxy && "${1}_rows" ;;
    floor) warm_rows ;;
    *)
      [ "$round" != 1 ] || rest_row
      case $server in proxy | squid) relayed_rows ;; esac
      cold_rows
      warm_rows
      # The floor knows no ranges.
      hits "ranges of 64 KiB, TLS, 64" "$tls$BIG" tls -c 64 --range 65536 --body read
      [ "$server" != proxy ] || hard_rows
      ;;
  esac
  stop_server
}

# Hits, which the floor gives, too.
warm_rows() {
  local n
  for n in 8 64; do
    hits "big hits, plain, $n" "$plain$BIG" plain -c $n --body drop
    hits "big hits, TLS, $n" "$tls$BIG" tls -c $n --body drop
  done
  hits "small hits, plain, 64" "$plain$SMALL" plain -c 64
  hits "small hits, TLS, 64" "$tls$SMALL" tls -c 64
  hits "new connection, TLS, small hit, 8" "$tls$SMALL" tls -c 8 --new-connection
  beside "small beside 8 big, plain" "$plain$SMALL" plain --beside "$plain$BIG"
  beside "small beside 8 big, TLS" "$tls$SMALL" tls --beside "$tls$BIG"
  [ "$round" != 1 ] || idle_rows
}

# Once: it is two million names.
entries_rows() {
  wanted "many entries" && [ "$round" = 1 ] || return 0
  fill "$SMALL" plain
  end "$pid"
  printf '== many entries: proxy (round 1)\n' >&2
  python3 "$here/bench/entries.py" "$PROXY" "$scratch/proxy/config.yaml" "$scratch/proxy/cache" \
    "$plain$SMALL" "$entries" "$results/$(name_of "many entries").json" || wrong=$((wrong + 1))
}

logged_rows() {
  hits "logged small hits, plain, 64" "$plain$SMALL" plain -c 64
  hits "logged small hits, TLS, 64" "$tls$SMALL" tls -c 64
}

# With a second worker on the load's core.
two_rows() {
  hits "two workers, big hits, TLS, 8" "$tls$BIG" tls -c 8 --body drop
  hits "two workers, small hits, plain, 64" "$plain$SMALL" plain -c 64
}

relayed_rows() {
  ca=$scratch/tls/ca.crt \
    run "relayed CONNECT, 1" "https://127.0.0.4:18443$BIG" tls -n 2 --body drop
}

# The origin serves on the load's core, so times are of both; CPU is the server's alone.
cold_rows() {
  run "cold big, TLS, 1" "$tls$BIG" tls -n 1 --body hash
  filled["$tls$BIG"]=yes
  run "first byte of a miss, TLS, 1" "$tls/v2/bench/cold/{n}" tls -n 200 --body drop --first-byte
  crowd "50 clients, one cold blob, plain" "$plain${CROWDS[0]}" plain 50
  crowd "50 clients, one cold blob, TLS" "$tls${CROWDS[1]}" tls 50
  # A hundred gigabytes, for which Squid needs four minutes.
  case $server in proxy | nginx | ats) ;; *) return 0 ;; esac
  if [ "$short" = yes ] && [ "$server" != proxy ]; then return 0; fi
  [ "$round" != 1 ] || crowd "1000 clients, one cold blob, plain" "$plain${CROWDS[2]}" plain 1000
}

# crowd ROW URL plain|tls CLIENTS
crowd() {
  wanted "$1" || return 0
  local before sent=0
  before=$(asked)
  sent=$(sent)
  run "$1" "$2" "$3" -c "$4" -n "$4" --body drop
  [ "$server" != direct ] || return 0
  # How often a peer asks is in the table.
  [ "$server" != proxy ] || no_more_than 1 "$before"
  python3 -c 'import json, sys
path, sent, length = sys.argv[1:]
run = json.load(open(path))
run["upstream"] = int(sent) / int(length)
json.dump(run, open(path, "w"))' "$results/$(name_of "$1").json" $(($(sent) - sent)) "$medium"
}

# Beside the streams a client that reads nothing, and one whose file is never in memory.
hard_rows() {
  local row="small beside 8 big, a stuck client, a cold file" way body
  body=$scratch/proxy/cache/blobs/sha256/${CROWDS[0]##*:}
  for way in plain TLS; do
    wanted "$row, $way" || continue
    fill "${CROWDS[0]}" plain
    sync "$body"
    while sleep 0.02; do dd if="$body" iflag=nocache count=0 status=none; done &
    local chill=$!
    if [ "$way" = plain ]; then
      taskset -c 1 nice -n 19 "$LOAD" "${plain_way[@]}" -d 60 --body drop "$plain${CROWDS[0]}" &
      local reader=$!
      beside "$row, $way" "$plain$SMALL" plain --beside "$plain$BIG" --unread 1
    else
      taskset -c 1 nice -n 19 "$LOAD" --ca "$ca" "${tls_way[@]}" -d 60 --body drop "$tls${CROWDS[0]}" &
      local reader=$!
      beside "$row, $way" "$tls$SMALL" tls --beside "$tls$BIG" --unread 1
    fi >/dev/null
    end "$reader"
    end "$chill"
  done
}

wanted() { [[ $1 =~ $only ]]; }

name_of() { printf '%s.%s.%s\n' "$(tr -c 'A-Za-z0-9\n' '-' <<<"$1")" "$server" "$round"; }

# fill PATH plain|tls: so that what follows are hits. A manifest that came from one upstream is no hit
# for the other, which is the same with TLS.
fill() {
  local url=$plain$1 options=("${plain_way[@]}")
  if [ "$2" = tls ]; then
    url=$tls$1 options=("${tls_way[@]}")
  fi
  [ -z "${filled[$url]:-}" ] || return 0
  "$LOAD" --ca "$ca" "${options[@]}" -n 1 --body drop "$url" >/dev/null
  filled["$url"]=yes
}

hits() {
  local row=$1 url=$2 way=$3
  shift 3
  wanted "$row" || return 0
  fill "/${url#*://*/}" "$way"
  local before
  before=$(asked)
  if [ "$short" = yes ]; then
    # Bodies that end, so that they can be checked; twice on each connection. The last word counts.
    run "$row" "$url" "$way" -n 128 "$@" --body hash
  else
    run "$row" "$url" "$way" --warm-up 0.5 --duration "$seconds" "$@"
  fi
  no_more_than 0 "$before"
}

# Far below what any of them can do, so that it is the big ones that make them wait.
beside() {
  local row=$1 url=$2 way=$3
  shift 3
  wanted "$row" || return 0
  # On a busy machine some peers answer none in a second.
  if [ "$short" = yes ] && [ "$server" != proxy ]; then return 0; fi
  fill "$BIG" "$way"
  fill "$SMALL" "$way"
  run "$row" "$url" "$way" --warm-up 0.5 --duration "$seconds" -c 16 --rate 500 "$@"
}

# How often upstream was asked so far, and how much it sent.
asked() { wc -l <"$scratch/origin/access.log"; }
sent() { awk '{ sum += $1 } END { printf "%.0f\n", sum }' "$scratch/origin/access.log"; }

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
  name=$(name_of "$row")
  printf '== %s: %s (round %s)\n' "$row" "$server" "$round" >&2
  if ! taskset -c 1 "$LOAD" --name "$row" --pid "$of" --core 0 --ca "$ca" "${options[@]}" "$@" \
    --json "$results/$name.json" --hgrm "$results/$name.hgrm" "$url" >&2; then
    wrong=$((wrong + 1))
  fi
}

# What it holds before anything was asked of it.
rest_row() { hold "at rest" plain 1; }

idle_rows() {
  local way most
  # The proxy keeps four descriptors for each, and some for itself and its entries.
  most=$((($(ulimit -Hn) - 1300) / 4))
  [ "$most" -le 20000 ] || most=20000
  for way in plain TLS; do
    hold "idle connections, $way" "$way" "$idle"
    if [ "$server" = proxy ] && [ "$short" = no ]; then
      hold "many idle connections, $way" "$way" "$most"
    fi
  done
}

# hold ROW plain|TLS CONNECTIONS
hold() {
  wanted "$1" || return 0
  local url=$plain of=$pid options=("${plain_way[@]}")
  if [ "$2" = TLS ]; then
    url=$tls of=$tls_pid options=("${tls_way[@]}")
  fi
  printf '== %s: %s (round %s)\n' "$1" "$server" "$round" >&2
  taskset -c 1 "$LOAD" --idle -c "$3" --name "$1" --pid "$of" --ca "$ca" "${options[@]}" \
    --json "$results/$(name_of "$1").json" "$url$SMALL" >&2 || wrong=$((wrong + 1))
}
