config=/etc/containers/containers.conf.d/discobot-proxy.conf

more_help() { :; }

set_up() {
  # Every user's podman has to read it.
  mode=644
  cat >"$work/new" <<END
# From podman's set-up for the discobot-proxy; --remove takes it away.
[engine]
env = ["HTTP_PROXY=$proxy", "HTTPS_PROXY=$proxy", "NO_PROXY=$direct"]

# The proxy is for pulls: containers don't know its CA.
[containers]
http_proxy = false
END
  put "$config"
}

unset_up() { take_back "$config"; }

afterwards() {
  [ -n "$remove" ] || cat <<END
Nothing has to be restarted but a running \`podman system service\`. skopeo and buildah take it from
their own environment: HTTPS_PROXY=$shown skopeo inspect docker://docker.io/library/alpine
END
}
