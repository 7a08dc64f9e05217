config=/etc/docker/daemon.json

more_help() { :; }

set_up() {
  if old_engine; then
    drop_in docker
    return
  fi
  without_us
  line="\"proxies\": {\"http-proxy\": \"$proxy\", \"https-proxy\": \"$proxy\", \"no-proxy\": \"$direct\"}"
  case $(tr -d ' \t\r\n' <"$work/base") in
    '' | '{}') printf '{\n  %s\n}\n' "$line" >"$work/new" ;;
    *'"proxies"'*) merge ;;
    '{'*)
      awk -v line="  $line," '
        !done && (at = index($0, "{")) {
          print substr($0, 1, at); print line; done = 1
          if (at < length($0)) print substr($0, at + 1)
          next
        }
        { print }' "$work/base" >"$work/new"
      ;;
    *) die "$config is no JSON object: mend it first" ;;
  esac
  # It says so of a file that the engine would not start with, whosever fault that is.
  if [ -z "$root" ] && dockerd --help 2>&1 | grep -q -e --validate; then
    dockerd --validate --config-file "$work/new" >"$work/said" 2>&1 ||
      die "$config would be refused: $(tail -n 1 "$work/said")"
  fi
  [ -z "$dry" ] || say "  to go into $config: \"proxies\" with $shown, and $direct without it"
  put "$config"
}

# Engines know `proxies` in daemon.json since 23.0.
old_engine() {
  have dockerd || return 1
  version=$(there dockerd --version 2>/dev/null | sed -n 's/.*version \([0-9]*\)\..*/\1/p')
  [ -n "$version" ] && [ "$version" -lt 23 ]
}

# What others set of `proxies` stays, but for our two addresses.
merge() {
  if command -v jq >/dev/null 2>&1; then
    jq --arg p "$proxy" --arg no "$direct" '.proxies |= ({"no-proxy": $no} + .
      + {"http-proxy": $p, "https-proxy": $p})' "$work/base" >"$work/new" 2>"$work/said" ||
      die "$config: $(cat "$work/said")"
  elif command -v python3 >/dev/null 2>&1; then
    python3 - "$work/base" "$proxy" "$direct" >"$work/new" 2>"$work/said" <<'END' || die "$config: $(tail -n 1 "$work/said")"
import json, sys
file, proxy, direct = sys.argv[1:]
config = json.load(open(file))
proxies = config.setdefault("proxies", {})
proxies.setdefault("no-proxy", direct)
proxies.update({"http-proxy": proxy, "https-proxy": proxy})
print(json.dumps(config, indent=2))
END
  else
    die "$config names a proxy already, and there is neither jq nor python3 to change that:
put into its \"proxies\": \"http-proxy\": \"$shown\", \"https-proxy\": \"$shown\""
  fi
}

# $work/base: the file as it is without us, empty where there is none.
without_us() {
  now=$root$config before=$root$state/$client/before$config ours=$root$state/$client/ours$config
  if [ -e "$ours" ] && cmp -s "$now" "$ours"; then
    if [ -e "$before" ]; then cat "$before"; fi >"$work/base"
  elif [ -e "$ours" ] && [ -e "$now" ]; then
    # Somebody changed it since: our line goes, where the rest is JSON without it.
    line=$(grep -o '^  "proxies": {"http-proxy": .*}' "$ours" || say '(none)')
    grep -vF -e "$line" "$now" >"$work/base" || :
    case $(tr -d ' \t\r\n' <"$work/base") in
      *,'}' | '') cat "$now" >"$work/base" ;;
    esac
  elif [ -e "$now" ]; then
    cat "$now" >"$work/base"
  else
    : >"$work/base"
  fi
}

unset_up() {
  without_us
  take_back "$config"
  rm -f "$work/base"
  take_back /etc/systemd/system/docker.service.d/discobot-proxy.conf
}

afterwards() {
  began_anew docker
  [ -n "$remove" ] || say "To see that it works: docker pull alpine, twice; discobot-proxy doctor"
}
