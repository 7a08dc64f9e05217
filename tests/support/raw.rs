//! Bytes as they are over a connection, and all that comes back until it is closed.

use super::client::{Client, Response};

/// What a server said to some bytes.
#[derive(Debug)]
pub struct Said {
    /// Its answers, in order.
    pub answers: Vec<Response>,
    /// Why reading ended, where that was not by a clean end between two answers.
    pub broken: Option<String>,
}

impl Said {
    /// The statuses, in order.
    pub fn statuses(&self) -> Vec<u16> {
        self.answers.iter().map(|answer| answer.status).collect()
    }

    /// The only answer; fails where there is none, or another one behind it, or where the
    /// connection did not end in good order behind it.
    #[track_caller]
    pub fn only(&self) -> &Response {
        assert_eq!(self.broken, None, "after {:?}", self.answers);
        assert_eq!(self.answers.len(), 1, "{:?}", self.answers);
        &self.answers[0]
    }
}

/// Sends the bytes at once and reads to the end of the connection. `method` is what all answers
/// are to.
pub fn say(client: &mut Client, method: &str, bytes: &[u8]) -> Said {
    // A server may refuse, and close, before it has everything.
    let _ = client.wire.send(bytes);
    let mut said = Said { answers: Vec::new(), broken: None };
    loop {
        match client.try_head() {
            Ok(Some(head)) => said.answers.push(client.rest(method, head)),
            Ok(None) => return said,
            Err(error) => {
                said.broken = Some(error.to_string());
                return said;
            }
        }
    }
}

/// All that comes until the connection ends, however it ends.
pub fn everything(client: &mut Client) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = client.wire.read_some(&mut buffer) {
        all.extend_from_slice(&buffer[..count]);
    }
    all
}
