//! The states of a job, and which may follow which. One machine serves managed backups, unmanaged ones and restores.
//!
//! ```text
//! DEFINED ─► PREPARING ─┬► EXPOSED ──────────────┬► FINALIZING ─► COMPLETED
//!                       └► RUNNING ◄─► PAUSED    │
//!                             └──────────────────┘
//! every state but the final ones ─► CANCELLED | FAILED | INTERRUPTED
//! ```
//!
//! Invariants: COMPLETED is reached through FINALIZING only; a final state stays; a job never prepares twice, because
//! its point in time cannot be had again.

use std::fmt;
use std::str::FromStr;

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobState {
    /// Accepted; nothing was touched yet.
    Defined,
    /// Freezing the instant: bitmaps, copy-before-write, exports.
    Preparing,
    /// Unmanaged: the exports are served, and somebody else reads them.
    Exposed,
    /// Managed, or a restore: data moves.
    Running,
    /// Waiting for a window or for a link; the instant is kept.
    Paused,
    /// The data is there; bitmaps, catalogue and cleaning up are not done yet.
    Finalizing,
    /// There is a backup (or restored disks). Only such a backup is ever a parent.
    Completed,
    /// Ended by request; the chain of bitmaps is as before.
    Cancelled,
    /// Ended by an error.
    Failed,
    /// The appliance died meanwhile; the instant is gone.
    Interrupted,
}

use JobState::{
    Cancelled, Completed, Defined, Exposed, Failed, Finalizing, Interrupted, Paused, Preparing, Running,
};

/// A step that no job takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {from} cannot become {to}; it can become {}", list(.from.successors()))]
pub struct IllegalTransition {
    /// The job's state.
    pub from: JobState,
    /// What it was to become.
    pub to: JobState,
}

/// A word that names no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no state of a job; the states are {states}", states = list(&JobState::ALL))]
pub struct UnknownState(pub String);

fn list(states: &[JobState]) -> String {
    if states.is_empty() {
        return "nothing else: this state is final".to_owned();
    }
    states.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(", ")
}

impl JobState {
    /// Every state.
    pub const ALL: [JobState; 10] =
        [Defined, Preparing, Exposed, Running, Paused, Finalizing, Completed, Cancelled, Failed, Interrupted];

    /// The states that may follow.
    pub fn successors(self) -> &'static [JobState] {
        match self {
            Defined => &[Preparing, Cancelled, Failed, Interrupted],
            Preparing => &[Exposed, Running, Cancelled, Failed, Interrupted],
            Exposed => &[Finalizing, Cancelled, Failed, Interrupted],
            Running => &[Paused, Finalizing, Cancelled, Failed, Interrupted],
            Paused => &[Running, Cancelled, Failed, Interrupted],
            Finalizing => &[Completed, Cancelled, Failed, Interrupted],
            Completed | Cancelled | Failed | Interrupted => &[],
        }
    }

    /// The next state, if it may follow.
    ///
    /// # Errors
    /// [`IllegalTransition`], which names the states that may.
    pub fn advance(self, to: JobState) -> Result<JobState, IllegalTransition> {
        if self.successors().contains(&to) { Ok(to) } else { Err(IllegalTransition { from: self, to }) }
    }

    /// True if nothing follows.
    pub fn is_final(self) -> bool {
        self.successors().is_empty()
    }

    /// The word used in XML, JSON and typed parameters.
    pub fn as_str(self) -> &'static str {
        match self {
            Defined => "defined",
            Preparing => "preparing",
            Exposed => "exposed",
            Running => "running",
            Paused => "paused",
            Finalizing => "finalizing",
            Completed => "completed",
            Cancelled => "cancelled",
            Failed => "failed",
            Interrupted => "interrupted",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        let found = JobState::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| UnknownState(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_step_that_no_job_takes_is_refused_with_those_it_can() {
        let error = Paused.advance(Completed).unwrap_err();
        let text = "a job that is paused cannot become completed; it can become running, cancelled, failed, interrupted";
        assert_eq!(error.to_string(), text);
        let error = Completed.advance(Running).unwrap_err();
        assert!(error.to_string().contains("this state is final"), "{error}");
    }

    #[test]
    fn every_word_names_its_state_and_others_none() {
        for state in JobState::ALL {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        let error = "done".parse::<JobState>().unwrap_err();
        assert!(error.to_string().starts_with("`done` is no state of a job; the states are defined, "));
    }

    #[test]
    fn whatever_is_not_final_can_be_cancelled_fail_or_be_interrupted() {
        for state in JobState::ALL.into_iter().filter(|state| !state.is_final()) {
            for end in [Cancelled, Failed, Interrupted] {
                assert_eq!(state.advance(end), Ok(end));
            }
        }
    }

    proptest! {
        #[test]
        fn a_life_obeys_the_laws(wishes in proptest::collection::vec(0_usize..10, 0..200)) {
            let mut life = vec![Defined];
            for wish in wishes {
                let last = life[life.len() - 1];
                let Ok(next) = last.advance(JobState::ALL[wish]) else { continue };
                prop_assert!(!last.is_final(), "{last} is final and became {next}");
                life.push(next);
            }
            let count = |state| life.iter().filter(|one| **one == state).count();
            prop_assert!(count(Defined) == 1 && count(Preparing) <= 1, "the instant was taken again: {life:?}");
            prop_assert!(count(Exposed) == 0 || count(Running) == 0, "managed and unmanaged at once: {life:?}");
            for pair in life.windows(2) {
                prop_assert!(pair[1] != Completed || pair[0] == Finalizing, "{life:?}");
                prop_assert!(pair[1] != Paused || pair[0] == Running, "{life:?}");
                prop_assert!(pair[0] != Paused || pair[1] == Running || pair[1].is_final(), "{life:?}");
                prop_assert!(pair[1] != Finalizing || matches!(pair[0], Exposed | Running), "{life:?}");
            }
        }
    }
}
