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

set_up() {
  file=$(environment_file)
  [ -z "$runner" ] || [ -d "$root$runner" ] || die "--runner: there is no directory $runner"
  others "$file" >"$work/base"
  {
    cat "$work/base"
    for name in HTTP_PROXY HTTPS_PROXY http_proxy https_proxy; do say "$name=$proxy"; done
    for name in NO_PROXY no_proxy; do say "$name=$direct"; done
  } >"$work/new"
  # What was there before the first set-up stays what comes back.
  rm -f "$work/base"
  put "$file"
}

# The lines of a file but those that name a proxy.
others() {
  [ ! -e "$root$1" ] || grep -viE '^(https?|no)_proxy=' "$root$1" || :
}

unset_up() {
  file=$(environment_file)
  {
    others "$file"
    grep -iE '^(https?|no)_proxy=' "$root$state/$client/before$file" 2>/dev/null || :
  } >"$work/base"
  take_back "$file"
}

afterwards() {
  [ -z "$remove" ] || return 0
  file=$(environment_file)
  if [ -n "$runner" ]; then
    say "Restart the runner. Its jobs' docker pulls go through dockerd: see http://@PROXY@/setup/docker"
  elif [ -n "${GITHUB_ENV:-}" ]; then
    say "The next steps of this job go through the proxy (podman, skopeo, curl)."
  else
    say "For what follows in this shell: set -a; . $file; set +a"
    cat <<END
GitLab Runner, for all of its jobs, in config.toml under [[runners]]:
  environment = ["HTTPS_PROXY=$shown", "NO_PROXY=$direct"]
Its Docker executor pulls images through dockerd: see http://@PROXY@/setup/docker
END
  fi
}
