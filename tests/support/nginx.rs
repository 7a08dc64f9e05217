//! Debian's nginx as a plain reverse proxy, to compare with.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::wait_until;

/// Nothing else of the tests listens on this address.
const ADDRESS: &str = "127.0.0.10:0";

/// A running nginx; killed with its value.
pub struct Nginx {
    address: SocketAddr,
    child: Child,
    dir: TempDir,
}

impl Nginx {
    /// Passes everything on to `upstream`. Its own time limits are short, so that a message it
    /// waits in vain for the rest of does not hold a test up.
    pub fn before(upstream: SocketAddr) -> Nginx {
        let dir = tempfile::Builder::new().prefix("discobot-").tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
        // It can be told no port 0. Should somebody take this one meanwhile, it tries for a while.
        let port = TcpListener::bind(ADDRESS).and_then(|listener| listener.local_addr());
        let address = port.expect("a port");
        let temps: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {};\n", path(name)))
            .concat();
        let config = format!(
            // One process: none is left behind when it is killed.
            "daemon off;\nmaster_process off;\npid {};\nerror_log {} info;\n\
             events {{ worker_connections 512; }}\n\
             http {{\naccess_log off;\n{temps}\
             client_header_timeout 2s;\nclient_body_timeout 2s;\nkeepalive_timeout 2s;\n\
             lingering_timeout 1s;\nclient_max_body_size 0;\n\
             server {{\nlisten {address};\nlocation / {{\n\
             proxy_pass http://{upstream};\nproxy_http_version 1.1;\n\
             proxy_set_header Connection \"\";\nproxy_set_header Host $http_host;\n\
             }}\n}}\n}}\n",
            path("pid"),
            path("error.log"),
        );
        std::fs::write(path("nginx.conf"), config).expect("its configuration");
        let child = Command::new("nginx")
            .args(["-p", &path(""), "-c", &path("nginx.conf")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx, which scripts/setup-tests.sh installs");
        let nginx = Nginx { address, child, dir };
        wait_until("nginx, which says that it listens by its pid file", || {
            nginx.dir.path().join("pid").exists().then_some(())
        });
        nginx
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has to say.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
