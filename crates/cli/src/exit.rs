//! Exit codes: what a script learns from the end of a command.
//!
//! Invariant: each kind of error has a code of its own, and the codes never change.

use std::process::ExitCode;

use aquifer_engine::Kind;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done.
    Done,
    /// 1: several things failed, each for a reason of its own.
    Mixed,
    /// 2: the words of the command line do not form a command.
    Usage,
    /// 3 to 11: the kind of what went wrong.
    Failed(Kind),
}

impl Exit {
    /// The number.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Mixed => 1,
            Exit::Usage => 2,
            Exit::Failed(Kind::Invalid) => 3,
            Exit::Failed(Kind::NotFound) => 4,
            Exit::Failed(Kind::Conflict) => 5,
            Exit::Failed(Kind::Denied) => 6,
            Exit::Failed(Kind::Unavailable) => 7,
            Exit::Failed(Kind::Corrupt) => 8,
            Exit::Failed(Kind::Unsupported) => 9,
            Exit::Failed(Kind::Cancelled) => 10,
            Exit::Failed(Kind::Internal) => 11,
        }
    }

    /// The end of several commands in a row: their common kind of failure, or [`Exit::Mixed`].
    pub(crate) fn and(self, next: Exit) -> Exit {
        match (self, next) {
            (Exit::Done, other) | (other, Exit::Done) => other,
            (first, second) if first == second => first,
            _ => Exit::Mixed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_the_documented_ones() {
        let kinds = [
            Kind::Invalid,
            Kind::NotFound,
            Kind::Conflict,
            Kind::Denied,
            Kind::Unavailable,
            Kind::Corrupt,
            Kind::Unsupported,
            Kind::Cancelled,
            Kind::Internal,
        ];
        let codes: Vec<u8> = kinds.into_iter().map(|kind| Exit::Failed(kind).code()).collect();
        assert_eq!(codes, [3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!([Exit::Done.code(), Exit::Mixed.code(), Exit::Usage.code()], [0, 1, 2]);
    }

    #[test]
    fn failures_of_one_kind_keep_it_and_different_ones_are_mixed() {
        let (denied, corrupt) = (Exit::Failed(Kind::Denied), Exit::Failed(Kind::Corrupt));
        assert_eq!(Exit::Done.and(denied), denied);
        assert_eq!(denied.and(Exit::Done).and(denied), denied);
        assert_eq!(denied.and(corrupt), Exit::Mixed);
        assert_eq!(Exit::Done.and(Exit::Done), Exit::Done);
    }
}
