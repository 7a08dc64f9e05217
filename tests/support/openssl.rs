//! The openssl command: what it says of a certificate counts, not what our own libraries say.

use std::io::Write;
use std::process::{Command, Stdio};

/// Runs a shell command with this standard input; its standard output. It has to succeed.
#[track_caller]
pub fn shell(command: &str, input: &[u8]) -> String {
    let (ok, out, err) = try_shell(command, input);
    assert!(ok, "{command}: {out}{err}");
    out
}

/// The same, whether it succeeds or not: that, standard output, standard error.
#[track_caller]
pub fn try_shell(command: &str, input: &[u8]) -> (bool, String, String) {
    let mut child = Command::new("bash")
        .args(["-o", "pipefail", "-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bash");
    // Short enough for the pipe, so that nothing waits for the other.
    assert!(input.len() < 60_000);
    child.stdin.take().expect("a pipe").write_all(input).expect("its input");
    let done = child.wait_with_output().expect("its end");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.success(), text(&done.stdout), text(&done.stderr))
}
