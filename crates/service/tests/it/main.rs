//! The service on real parts: a repository in a folder, and QEMUs whose processor is stopped.
//!
//! Not here: the guest's bytes and what a crash leaves; the stories of the whole program have a live guest for that.

#![allow(clippy::unwrap_used, reason = "what a helper cannot do fails the test that asked for it")]

mod api_conformance;
mod machine;
