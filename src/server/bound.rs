//! Where the process listens: sockets bound before anything starts, or handed over by the service
//! manager.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use crate::config::Config;
use crate::sys::process::passed_sockets;

/// The keys that say where is listened.
const PROXY: &str = "proxy.port";
const ADMIN: &str = "proxy.api_port";

/// Sockets that are bound; of ours, none listens yet.
pub struct Bound {
    /// Where clients come.
    pub proxy: Vec<SocketAddr>,
    /// Where the admin listener is.
    pub admin: SocketAddr,
    /// For each worker, one per address.
    pub sockets: Vec<Vec<Socket>>,
    /// The admin listener's.
    pub admin_socket: Socket,
}

impl Bound {
    /// Takes the sockets that were handed over (sd_listen_fds(3)), and binds what is missing. The
    /// one on `proxy.api_bind` and `api_port` is the admin listener; where there are others,
    /// clients come to these and not to `proxy.port`.
    pub fn bind(config: &Config, workers: usize) -> Result<Bound, StartError> {
        let admin = SocketAddr::new(config.proxy.api_bind, config.proxy.api_port);
        let mut passed = Vec::new();
        for socket in passed_sockets().map_err(StartError::Passed)? {
            passed.push((listens_at(&socket).map_err(StartError::Passed)?, socket));
        }
        let (mut for_admin, for_proxy): (Vec<_>, Vec<_>) =
            passed.into_iter().partition(|(address, _)| *address == admin);
        let (proxy, sockets) = match for_proxy.is_empty() {
            true => bind_proxy(config, workers)?,
            false => {
                for (address, _) in &for_proxy {
                    if !is_configured(config, *address) {
                        tracing::warn!(%address,
                            "clients come to a socket that was handed over, not to proxy.bind and \
                             proxy.port");
                    }
                }
                share_out(for_proxy, workers).map_err(StartError::Passed)?
            }
        };
        let admin_socket = match for_admin.pop() {
            Some((_, socket)) => socket,
            None => bind(ADMIN, admin, false, config)?,
        };
        let port = port_of(ADMIN, &admin_socket, admin)?;
        Ok(Bound { proxy, admin: SocketAddr::new(admin.ip(), port), sockets, admin_socket })
    }
}

/// Where a socket listens; an error says what else it is.
fn listens_at(socket: &Socket) -> io::Result<SocketAddr> {
    if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
        return Err(io::Error::other("one of them is no listening stream socket (ListenStream=)"));
    }
    let address = socket.local_addr()?.as_socket();
    address.ok_or_else(|| io::Error::other("one of them is no TCP socket (ListenStream= a port)"))
}

/// Whether clients may expect the proxy there; all addresses are all, of whichever family.
fn is_configured(config: &Config, address: SocketAddr) -> bool {
    let (ip, any) = (address.ip(), address.ip().is_unspecified());
    let mut binds = config.proxy.bind.iter();
    address.port() == config.proxy.port && binds.any(|b| *b == ip || any && b.is_unspecified())
}

type Shares = (Vec<SocketAddr>, Vec<Vec<Socket>>);

/// Every worker takes clients from every socket.
fn share_out(passed: Vec<(SocketAddr, Socket)>, workers: usize) -> io::Result<Shares> {
    let clones = || passed.iter().map(|(_, socket)| socket.try_clone()).collect();
    let sockets = (0..workers).map(|_| clones()).collect::<io::Result<_>>()?;
    Ok((passed.iter().map(|(address, _)| *address).collect(), sockets))
}

fn bind_proxy(config: &Config, workers: usize) -> Result<Shares, StartError> {
    let mut proxy = Vec::new();
    let mut sockets: Vec<Vec<Socket>> = (0..workers).map(|_| Vec::new()).collect();
    let mut port = config.proxy.port;
    for ip in &config.proxy.bind {
        let mut address = SocketAddr::new(*ip, port);
        if port != 0 {
            // Another proxy of the same user would share the port with us, unnoticed.
            bind(PROXY, address, false, config)?;
        }
        for sockets in &mut sockets {
            let socket = bind(PROXY, address, true, config)?;
            address.set_port(port_of(PROXY, &socket, address)?);
            sockets.push(socket);
        }
        port = address.port();
        proxy.push(address);
    }
    Ok((proxy, sockets))
}

fn bind(
    key: &'static str,
    address: SocketAddr,
    share: bool,
    config: &Config,
) -> Result<Socket, StartError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(share)?;
        if address.is_ipv6() {
            // "::" alone takes IPv4 clients too, as nginx and Docker do; beside "0.0.0.0" it can't.
            let beside = config.proxy.bind.iter().any(IpAddr::is_ipv4);
            socket.set_only_v6(beside)?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    };
    bind().map_err(|why| StartError::Listen { key, address, why })
}

fn port_of(key: &'static str, socket: &Socket, address: SocketAddr) -> Result<u16, StartError> {
    let local = socket.local_addr().map_err(|why| StartError::Listen { key, address, why })?;
    Ok(local.as_socket().map_or(address.port(), |local| local.port()))
}
