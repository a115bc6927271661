//! The conformance suite on the catalogue in memory, and on faulty ones: a suite that passes everything proves nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::memory::{Fault, Memory};

/// Drives a future that never waits for anything outside.
fn run<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the catalogue in memory waits for nothing"),
    }
}

#[test]
fn the_catalogue_in_memory_keeps_the_contract() {
    run(super::check(&Memory::default()));
}

#[test]
fn the_suite_notices_every_fault() {
    for fault in [
        Fault::KeepsOrphans,
        Fault::ForgetsProtection,
        Fault::IgnoresLatest,
        Fault::CancelsOnce,
        Fault::TrustsCancelled,
        Fault::IgnoresUuid,
        Fault::LetsTwoIn,
        Fault::AdoptsExternal,
    ] {
        let faulty = Memory::faulty(fault);
        let noticed = catch_unwind(AssertUnwindSafe(|| run(super::check(&faulty))));
        assert!(noticed.is_err(), "the suite passes a catalogue that {fault:?}");
    }
}
