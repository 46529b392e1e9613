//! [`next_step`]: decides what a backup run does next for one dataset. The run reads the stores and
//! the pool, asks for a step, takes it, and reads again, until a step ends the run.
//!
//! # The order of the steps
//! 1. Interrupted commits, because they need only a few small puts.
//! 2. Interrupted uploads: with `--restart` they are abandoned, otherwise resumed, incrementals
//!    before fulls. A full may take many nights, but an incremental on the chain before it takes
//!    minutes: an incremental of the newest snapshot overtakes the full once in a run, if no kind
//!    was requested.
//! 3. The newest snapshot.

use super::send::RequestedKind;
use crate::model::BackupKind;

/// The facts for the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunFacts {
    /// The kind that the command line requests.
    pub requested: RequestedKind,
    /// Whether the journals have interrupted commits that this run has not tried yet.
    pub has_interrupted_commits: bool,
    /// The kind of the first upload to resume; `None` without an unfinished upload.
    pub unfinished: Option<BackupKind>,
    /// Whether `--restart` asks to abandon all unfinished uploads first.
    pub restart: bool,
    /// Whether the newest snapshot can be sent now as an incremental on a complete chain.
    pub can_send_incremental: bool,
    /// Whether this run has already overtaken an unfinished full.
    pub has_overtaken: bool,
    /// Whether the hours of uploads are over.
    pub must_pause: bool,
    /// Whether this run has committed a full.
    pub has_committed_full: bool,
}

/// The next step of a backup run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Finish the interrupted commits.
    EndCommits,
    /// Abandon all unfinished uploads.
    Abandon,
    /// Send the newest snapshot as an incremental, before an unfinished full.
    Overtake,
    /// End the run: the next run resumes the first unfinished upload.
    Pause,
    /// Resume the first unfinished upload.
    Resume,
    /// Back up the newest snapshot, and end the run.
    BackUpNewest(RequestedKind),
}

/// Decides the next step; see the [module](self) for the order.
pub fn next_step(facts: &RunFacts) -> Step {
    if facts.has_interrupted_commits {
        return Step::EndCommits;
    }
    match facts.unfinished {
        Some(_) if facts.restart => Step::Abandon,
        Some(BackupKind::Full) if may_overtake(facts) => Step::Overtake,
        Some(_) if facts.must_pause => Step::Pause,
        Some(_) => Step::Resume,
        // A full that this run has just finished satisfies `--full`.
        None if facts.requested == RequestedKind::Full && facts.has_committed_full => {
            Step::BackUpNewest(RequestedKind::Lifecycle)
        }
        None => Step::BackUpNewest(facts.requested),
    }
}

fn may_overtake(facts: &RunFacts) -> bool {
    facts.requested == RequestedKind::Lifecycle
        && facts.can_send_incremental
        && !facts.has_overtaken
}

#[cfg(test)]
mod tests {
    use super::*;
    use BackupKind::{Full, Incr};
    use RequestedKind::{Full as FullOnly, Incremental as IncrementalOnly, Lifecycle};

    const NOTHING_LEFT: RunFacts = RunFacts {
        requested: Lifecycle,
        has_interrupted_commits: false,
        unfinished: None,
        restart: false,
        can_send_incremental: false,
        has_overtaken: false,
        must_pause: false,
        has_committed_full: false,
    };
    const FULL_LEFT: RunFacts = RunFacts {
        unfinished: Some(Full),
        ..NOTHING_LEFT
    };
    const OVERTAKEN: RunFacts = RunFacts {
        can_send_incremental: true,
        ..FULL_LEFT
    };

    #[test]
    fn each_state_has_its_next_step() {
        let table = [
            ("nothing left", NOTHING_LEFT, Step::BackUpNewest(Lifecycle)),
            (
                "a commit comes before everything",
                RunFacts {
                    has_interrupted_commits: true,
                    restart: true,
                    must_pause: true,
                    ..OVERTAKEN
                },
                Step::EndCommits,
            ),
            ("a full alone", FULL_LEFT, Step::Resume),
            (
                "an incremental",
                RunFacts {
                    unfinished: Some(Incr),
                    can_send_incremental: true,
                    ..NOTHING_LEFT
                },
                Step::Resume,
            ),
            ("a full and a complete chain", OVERTAKEN, Step::Overtake),
            (
                "overtaking starts even outside the window",
                RunFacts {
                    must_pause: true,
                    ..OVERTAKEN
                },
                Step::Overtake,
            ),
            (
                "overtaken once",
                RunFacts {
                    has_overtaken: true,
                    ..OVERTAKEN
                },
                Step::Resume,
            ),
            (
                "--full resumes the full first",
                RunFacts {
                    requested: FullOnly,
                    ..OVERTAKEN
                },
                Step::Resume,
            ),
            (
                "the window is over",
                RunFacts {
                    must_pause: true,
                    ..FULL_LEFT
                },
                Step::Pause,
            ),
            (
                "the window does not end a run without an upload",
                RunFacts {
                    must_pause: true,
                    ..NOTHING_LEFT
                },
                Step::BackUpNewest(Lifecycle),
            ),
            (
                "--restart",
                RunFacts {
                    restart: true,
                    ..OVERTAKEN
                },
                Step::Abandon,
            ),
            (
                "--restart without an upload",
                RunFacts {
                    restart: true,
                    ..NOTHING_LEFT
                },
                Step::BackUpNewest(Lifecycle),
            ),
            (
                "--full",
                RunFacts {
                    requested: FullOnly,
                    ..NOTHING_LEFT
                },
                Step::BackUpNewest(FullOnly),
            ),
            (
                "--full after a full of this run",
                RunFacts {
                    requested: FullOnly,
                    has_committed_full: true,
                    ..NOTHING_LEFT
                },
                Step::BackUpNewest(Lifecycle),
            ),
            (
                "--incremental after a full of this run",
                RunFacts {
                    requested: IncrementalOnly,
                    has_committed_full: true,
                    ..NOTHING_LEFT
                },
                Step::BackUpNewest(IncrementalOnly),
            ),
        ];
        for (name, facts, step) in table {
            assert_eq!(next_step(&facts), step, "{name}");
        }
    }
}
