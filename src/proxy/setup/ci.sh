more_help() {
  say '  --runner DIR  the folder of an Actions runner on this host: its .env names the proxy from then on'
}

# Where what follows in this job reads its environment.
environment_file() {
  if [ -n "$runner" ]; then
    say "$runner/.env"
  elif [ -n "${GITHUB_ENV:-}" ]; then
    say "$GITHUB_ENV"
  else
    say "${CI_PROJECT_DIR:-$PWD}/discobot.env"
  fi
}

# Whether the file is one that the job's runner gives out anew for every step, and reads after it.
of_a_step() { [ -z "$runner" ] && [ -n "${GITHUB_ENV:-}" ]; }

# with_values PROXY DIRECT: our lines.
with_values() {
  for name in HTTP_PROXY HTTPS_PROXY http_proxy https_proxy; do say "$name=$1"; done
  for name in NO_PROXY no_proxy; do say "$name=$2"; done
}

# The lines of a file but those that name a proxy.
others() {
  [ ! -e "$root$1" ] || grep -viE '^(https?|no)_proxy=' "$root$1" || :
}

# is_said FILE: whether the lines of $work/lines are the last it has of their kind: the last ones count.
is_said() {
  [ -e "$root$1" ] || return 1
  grep -iE '^(https?|no)_proxy=' "$root$1" | tail -n 6 | cmp -s - "$work/lines"
}

# What other steps put there is none of ours, and may be secret: lines are added at its end alone.
add_to_step() {
  [ ! -L "$root$1" ] || die "$1 is a link to $(readlink "$root$1"): name the file behind it"
  if is_said "$1"; then
    [ -z "$dry" ] || say "  $1: $2 already"
  elif [ -n "$dry" ]; then
    say "  $1: $3"
  else
    [ ! -s "$root$1" ] || [ -z "$(tail -c 1 "$root$1")" ] || say '' >>"$root$1"
    cat "$work/lines" >>"$root$1"
    changed=1
  fi
}

set_up() {
  file=$(environment_file) now=$root$(environment_file)
  [ -z "$runner" ] || [ -d "$root$runner" ] || die "--runner: there is no directory $runner"
  [ -z "$runner" ] || [ -e "$root$runner/.runner" ] || [ -e "$root$runner/run.sh" ] ||
    die "--runner: $runner is no Actions runner: there is neither .runner nor run.sh in it"
  with_values "$proxy" "$direct" >"$work/lines"
  if of_a_step; then
    add_to_step "$file" "names the proxy" "name the proxy, for the next steps"
    return
  fi
  { others "$file" && cat "$work/lines"; } >"$work/new"
  [ ! -L "$now" ] || die "$file is a link to $(readlink "$now"): name the file behind it"
  if cmp -s "$work/new" "$now"; then
    [ -z "$dry" ] || say "  $file: is as it should be"
  elif [ -n "$dry" ]; then
    say "  $file: name the proxy (no other line is touched)"
  else
    kept "/lines$(dirname "$file")"
    folder "$(dirname "$file")"
    [ -e "$root$state/$client/lines$file" ] || taken_out >"$root$state/$client/lines$file"
    becomes "$now" "$work/new"
    changed=1
  fi
}

# What --remove has to know of the file at $now: its mode and how it ends, or that there is none, and the
# lines that make room for ours, each with its number. No copy of it all: it may hold secrets.
taken_out() {
  if [ ! -e "$now" ]; then
    say made
    return
  fi
  end=whole
  [ ! -s "$now" ] || [ -z "$(tail -c 1 "$now")" ] || end=cut
  say "$(stat -c %a "$now") $end"
  grep -niE '^(https?|no)_proxy=' "$now" || :
}

unset_up() {
  file=$(environment_file) now=$root$(environment_file) taken=$root$state/$client/lines$file
  if of_a_step; then
    # The steps before had files of their own, and what they said is in the environment by now.
    with_values "$proxy" "$direct" >"$work/lines"
    case ${HTTPS_PROXY:-} in
      *"${shown#http://}"*) ;;
      *) is_said "$file" || return 0 ;;
    esac
    with_values '' '' >"$work/lines"
    add_to_step "$file" "names no proxy" "name no proxy, for the next steps"
    return
  fi
  [ -e "$taken" ] || return 0
  [ ! -L "$now" ] || die "$file is a link by now: take the proxy out of the file behind it by hand"
  changed=1
  read -r how end <"$taken" || :
  others "$file" >"$work/rest"
  if [ "$how" = made ] && [ ! -s "$work/rest" ]; then
    [ -z "$dry" ] || say "  $file: remove"
    [ -n "$dry" ] || rm -f "$now"
  else
    [ -z "$dry" ] || say "  $file: take our lines out"
    [ -n "$dry" ] || put_back
  fi
  [ -n "$dry" ] || rm -f "$taken"
}

# The lines that had made room go back to where they were.
put_back() {
  sed 1d "$taken" >"$work/lines"
  awk -v lines="$work/lines" '
    function back() { while (out + 1 in was) { print was[++out]; delete was[out] } }
    BEGIN {
      while ((getline line <lines) > 0) {
        at = index(line, ":")
        last = substr(line, 1, at - 1) + 0
        was[last] = substr(line, at + 1)
      }
    }
    { back(); print; out++ }
    END { back(); for (n = 1; n <= last; n++) if (n in was) print was[n] }' "$work/rest" >"$work/new"
  if [ "$end" = cut ]; then
    printf '%s' "$(cat "$work/new")" >"$work/rest"
    cat "$work/rest" >"$work/new"
  fi
  becomes "$now" "$work/new"
  [ "$how" = made ] || chmod "$how" "$now"
}

afterwards() {
  file=$(environment_file)
  if [ -n "$runner" ]; then
    # What its svc.sh leaves there.
    unit=$(cat "$root$runner/.service" 2>/dev/null || :)
    if [ -n "$unit" ]; then
      began_anew "$unit"
    else
      say "It counts once the runner's run.sh is started again."
    fi
    [ -n "$remove" ] ||
      say "Its jobs' docker pulls go through dockerd: see http://@PROXY@/setup/docker"
  elif [ -n "$remove" ]; then
    return 0
  elif [ -n "${GITHUB_ENV:-}" ]; then
    say "The next steps of this job go through the proxy (podman, skopeo, curl)."
  else
    say "For what follows in this shell: set -a; . $file; set +a"
    cat <<TEXT
GitLab Runner, for all of its jobs, in config.toml under [[runners]]:
  environment = ["HTTPS_PROXY=$shown", "NO_PROXY=$direct"]
Its Docker executor pulls images through dockerd: see http://@PROXY@/setup/docker
TEXT
  fi
}
