//! The load beside the one that is measured: a process of its own, which gets what that one leaves of
//! the core, so that latencies are the server's and not those of a client that is busy with bodies.

use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::args::Args;

pub struct Beside(Child);

impl Beside {
    /// Runs as long as the measured load does.
    pub fn start(url: &str, args: &Args) -> Result<Beside, String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(own).args([url, "--body", "drop", "--json", "/dev/stderr"]);
        command.args(["--connections", &args.beside_connections.to_string()]);
        command.args(["--duration", &args.duration.to_string()]);
        command.args(["--warm-up", &args.warm_up.to_string()]);
        for (option, value) in [("--proxy", &args.proxy), ("--connect", &args.connect)] {
            if let Some(value) = value {
                command.args([option, value]);
            }
        }
        for field in &args.header {
            command.args(["--header", field]);
        }
        if let Some(ca) = &args.ca {
            command.arg("--ca").arg(ca);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().map(Beside).map_err(|error| format!("the load beside: {error}"))
    }

    /// Its results.
    pub fn end(self) -> Result<Value, String> {
        let ended = self.0.wait_with_output();
        let said = ended.map_err(|error| format!("the load beside: {error}"))?.stderr;
        // What went wrong stands before the figures, which are an object of many lines.
        let said = String::from_utf8_lossy(&said);
        let from = said.find("{\n").unwrap_or(0);
        let value = serde_json::from_str(&said[from..]);
        value.map_err(|_| format!("the load beside: {}", said.trim()))
    }
}
