//! Commands that talk to a running proxy, by blocking calls: they are no part of it.

pub mod admin;
mod login;
pub mod warm;
