//! Whether a system's clients know the proxy and trust its CA.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::ask::Proxy;
use super::{Finding, State, fail, ok, warn};

/// Where systems keep the certificates that programs trust.
const BUNDLES: [&str; 4] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/ssl/ca-bundle.pem",
    "etc/ssl/cert.pem",
];

/// What names the proxy: a file, or every file of a folder.
const SETTINGS: [(&str, &[&str], &[&str]); 4] = [
    ("docker", &["dockerd"], &["etc/docker/daemon.json", "etc/systemd/system/docker.service.d"]),
    (
        "containerd",
        &["containerd", "k3s"],
        &[
            "etc/systemd/system/containerd.service.d",
            "etc/systemd/system/k3s.service.d",
            "etc/systemd/system/k3s-agent.service.d",
        ],
    ),
    (
        "podman",
        &["podman"],
        &["etc/containers/containers.conf", "etc/containers/containers.conf.d"],
    ),
    ("buildkit", &["buildkitd"], &["etc/systemd/system/buildkit.service.d"]),
];

/// In the order of `SETTINGS`, after the system's store.
pub fn look(root: &Path, proxy: &Proxy, ca: &str) -> Vec<Finding> {
    let installed: Vec<_> = SETTINGS
        .iter()
        .filter(|(_, programs, _)| programs.iter().any(|program| is_installed(root, program)))
        .collect();
    // Any script installs the CA; without a client here, that of a job's shell.
    let script = installed.first().map_or("ci", |(name, ..)| name);
    let (store, changed) = store(root, proxy, ca, script);
    let mut findings = vec![store];
    let has_docker = installed.iter().any(|(name, ..)| *name == "docker");
    for (name, programs, places) in installed {
        let mut finding = client(root, proxy, name, programs, places, changed);
        // It may be there for Docker alone, which pulls by itself.
        if *name == "containerd" && has_docker && finding.state == State::Fail {
            finding.state = State::Warn;
        }
        findings.push(finding);
    }
    findings
}

fn set_up(proxy: &Proxy, name: &str) -> String {
    format!("curl -fsSL {proxy}/setup/{name} | sudo sh -s -- --restart")
}

/// And when the bundle changed last.
fn store(root: &Path, proxy: &Proxy, ca: &str, script: &str) -> (Finding, Option<SystemTime>) {
    let what = "system store";
    let found = BUNDLES.iter().map(|bundle| root.join(bundle)).find(|bundle| bundle.exists());
    let Some(bundle) = found else {
        return (fail(what, "there is none", "install the package ca-certificates"), None);
    };
    let shown = bundle.display();
    let wanted = certificates(ca);
    let trusted = certificates(&fs::read_to_string(&bundle).unwrap_or_default());
    let changed = fs::metadata(&bundle).and_then(|meta| meta.modified()).ok();
    // The root is enough, where the proxy has an intermediate.
    let finding = if wanted.iter().any(|certificate| trusted.contains(certificate)) {
        ok(what, format!("{shown} has the proxy's CA"))
    } else {
        fail(what, format!("{shown} does not have the proxy's CA"), set_up(proxy, script))
    };
    (finding, changed)
}

/// The bodies of a PEM file, without their line ends.
fn certificates(pem: &str) -> Vec<String> {
    let blocks = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
    let bodies = blocks.filter_map(|block| block.split("-----END").next());
    bodies.map(|body| body.split_whitespace().collect()).collect()
}

fn client(
    root: &Path,
    proxy: &Proxy,
    what: &'static str,
    programs: &[&str],
    places: &[&str],
    bundle_changed: Option<SystemTime>,
) -> Finding {
    let address = proxy.authority();
    let names_it = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap_or_default();
        // Behind the scheme or a user; what follows must not be a longer port.
        text.match_indices(&address).any(|(at, _)| {
            let before = text.get(..at).unwrap_or_default();
            let after = text.get(at + address.len()..).unwrap_or_default();
            before.ends_with(['/', '@']) && !after.starts_with(|c: char| c.is_ascii_digit())
        })
    };
    let Some(file) = places.iter().flat_map(|place| files(root, place)).find(names_it) else {
        let seen = format!("none of its settings ({}) names {address}", places.join(", "));
        return fail(what, seen, set_up(proxy, what));
    };
    let changed = fs::metadata(&file).and_then(|meta| meta.modified()).ok().max(bundle_changed);
    let stale = programs.iter().filter(|program| **program != "podman").any(|program| {
        started(root, program).is_some_and(|started| changed.is_some_and(|it| it > started))
    });
    if stale {
        let seen = "it runs since before its settings or the system's store were changed";
        return fail(what, seen, format!("systemctl daemon-reload && systemctl restart {what}"));
    }
    let seen = format!("{} names it", file.display());
    match what {
        "podman" if std::env::var_os("SSL_CERT_FILE").is_some() => warn(
            what,
            format!("{seen}, but SSL_CERT_FILE replaces the store"),
            "unset SSL_CERT_FILE",
        ),
        _ => ok(what, seen),
    }
}

/// A file, or the files of a folder.
fn files(root: &Path, place: &str) -> Vec<PathBuf> {
    let path = root.join(place);
    if path.is_dir() { entries(&path) } else { vec![path] }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten().flatten();
    read.map(|entry| entry.path()).collect()
}

fn is_installed(root: &Path, program: &str) -> bool {
    let folders = ["usr/sbin", "usr/bin", "usr/local/bin", "usr/local/sbin"];
    folders.iter().any(|folder| root.join(folder).join(program).is_file())
}

/// When the running process of this name began, if there is one.
fn started(root: &Path, program: &str) -> Option<SystemTime> {
    let proc = root.join("proc");
    let pid = entries(&proc).into_iter().find(|process| {
        fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim_end() == program)
    })?;
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let boot: u64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    let own = fs::read_to_string(pid.join("stat")).ok()?;
    // The name, in parentheses, may hold spaces. The start is the 22nd field, in USER_HZ, which is
    // 100 wherever Linux runs.
    let ticks: u64 = own.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    // Whole seconds, rounded up: what was written within the second of the start counts as read.
    Some(UNIX_EPOCH + Duration::from_secs(boot + ticks / 100 + 1))
}
