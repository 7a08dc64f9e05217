toml=/etc/discobot/buildkitd.toml

more_help() {
  say '  --registry HOST  one more registry for a builder of buildx; may be given several times'
}

# A buildkitd of this system goes by its unit's environment and the system's store. A builder of
# buildx is a container, whose CAs are copied from files that its buildkitd.toml names.
has_daemon() { have buildkitd; }

set_up() {
  if has_daemon; then
    drop_in buildkit
    return
  fi
  # Neither file holds a password, and whoever makes the builder reads both.
  mode=644
  certificate >"$work/new"
  put /etc/discobot/ca.crt
  # Names without blanks, of which the proxy puts several in.
  # shellcheck disable=SC2043,SC2086
  for registry in @REGISTRIES@ $registries; do
    printf '[registry."%s"]\n  ca = ["/etc/discobot/ca.crt"]\n' "$registry"
  done >"$work/new"
  put "$toml"
}

unset_up() {
  take_back /etc/systemd/system/buildkit.service.d/discobot-proxy.conf
  take_back "$toml"
  take_back /etc/discobot/ca.crt
}

afterwards() {
  if has_daemon; then
    began_anew buildkit
  elif [ -n "$remove" ]; then
    say "A builder that was made with it goes by: docker buildx rm discobot"
  else
    cat <<END
\`docker build\` without a builder of its own wants http://@PROXY@/setup/docker instead.
A builder that goes through the proxy is made by whoever uses it, with
  docker buildx create --name discobot --use --driver docker-container \\
    --buildkitd-config $toml \\
    --driver-opt env.HTTP_PROXY=$shown --driver-opt env.HTTPS_PROXY=$shown
and is to be made again (docker buildx rm discobot) after the address or the CA has changed.
END
    # BuildKit takes a CA for one host, and no pattern.
    patterns='@PATTERNS@'
    [ -z "$patterns" ] || cat <<END
The proxy opens $patterns too: of these the builder has to be told each host, by --registry HOST.
END
  fi
}
