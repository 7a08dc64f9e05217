more_help() {
  say '  --unit NAME   the unit that runs containerd, such as k3s; by default containerd'
}

unit_name() { say "${unit:-containerd}"; }

# Both the client of containerd's CRI plugin and that of its transfer service go by the daemon's
# environment and the system's store.
set_up() { drop_in "$(unit_name)"; }

unset_up() { take_back "/etc/systemd/system/$(unit_name).service.d/discobot-proxy.conf"; }

afterwards() {
  began_anew "$(unit_name)"
  [ -n "$remove" ] || cat <<END
Kubernetes and nerdctl pull in containerd. \`ctr image pull\` asks from its own process:
  HTTPS_PROXY=$shown ctr image pull docker.io/library/alpine:latest
END
}
