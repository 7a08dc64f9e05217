//! The configuration by way of the admin listener: shown, read again, patched. What a change is and
//! what it leaves alone: [`live`](crate::live).

use std::sync::Arc;

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Admin, Answer, not_allowed, off_core, refusal};
use crate::http::{Method, RequestHead};
use crate::live::{Change, Live, Refused};

/// How long what a patch says counts, for whoever reads its answer.
const UNTIL: &str = "the next reload or restart: the file was not changed";

impl Admin {
    pub(super) async fn configuration(
        &self,
        head: &RequestHead,
        path: &str,
        body: &[u8],
    ) -> Answer {
        let reads = head.method == Method::GET || head.method == Method::HEAD;
        match (path, &head.method) {
            ("/api/config", _) if reads => self.shown(head),
            ("/api/config", method) if *method == Method::PATCH => self.patch(body).await,
            ("/api/config", _) => not_allowed("Allow: GET, HEAD, PATCH\r\n"),
            (_, method) if *method == Method::POST => self.reload().await,
            _ => not_allowed("Allow: POST\r\n"),
        }
    }

    /// As JSON, or as YAML for who asks for that; secrets masked.
    fn shown(&self, head: &RequestHead) -> Answer {
        let config = self.live.config();
        match head.fields.get_str("accept") {
            Some(kinds) if kinds.contains("yaml") => {
                let body = config.to_yaml().into_bytes();
                Answer { status: 200, extra: "", kind: "application/yaml", body }
            }
            _ => Answer::json(200, &config.shown()),
        }
    }

    async fn reload(&self) -> Answer {
        let reload = |live: &Live| live.reload().map_err(Refused::Document);
        self.change(reload, json!({"status": "ok"})).await
    }

    async fn patch(&self, body: &[u8]) -> Answer {
        let Ok(document) = std::str::from_utf8(body) else {
            return refusal(400, "MALFORMED", "body: found bytes that are not UTF-8");
        };
        let document = Zeroizing::new(document.to_owned());
        let patch = move |live: &Live| live.patch(&document);
        self.change(patch, json!({"status": "ok", "until": UNTIL})).await
    }

    async fn change(
        &self,
        make: impl FnOnce(&Live) -> Result<Change, Refused> + Send + 'static,
        mut done: Value,
    ) -> Answer {
        let live = Arc::clone(&self.live);
        off_core(move || match make(&live) {
            Ok(Change { changed, restart }) => {
                done["changed"] = changed.into();
                done["restart"] = restart.into();
                Answer::json(200, &done)
            }
            Err(error) => {
                let (status, code) = match error {
                    Refused::Document(_) => (400, "MALFORMED"),
                    Refused::Restart(_) | Refused::FileAlone(_) => (409, "CONFLICT"),
                };
                refusal(status, code, &error.to_string())
            }
        })
        .await
    }
}
