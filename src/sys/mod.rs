//! System calls that neither std nor the runtime offers, and std's clock and locks in the form that
//! the crate wants. All the `unsafe` of the crate is here: each function takes borrowed
//! descriptors, makes one call and returns an [`std::io::Result`]. No policy, no loops; no state
//! but which calls the kernel lacks.
#![allow(unsafe_code)]

pub mod clock;
pub mod file;
pub mod ktls;
pub mod process;
pub mod socket;
pub mod sync;
pub mod watch;
