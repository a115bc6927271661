//! The tests that cross crates: a real QEMU, real servers, the real binary. They live in `tests/it`, one module a story;
//! this library is empty because a package needs one.
