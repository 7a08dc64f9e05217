//! System calls that neither std nor the runtime offers. All the `unsafe` of the crate is here:
//! each function takes borrowed descriptors, makes one call and returns an [`std::io::Result`]. No
//! policy, no loops, no state.
#![allow(unsafe_code)]

pub mod file;
pub mod ktls;
pub mod process;
pub mod socket;
pub mod watch;
