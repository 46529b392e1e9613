//! The calls that a [`MemoryStore`](super::MemoryStore) receives, in order, and the failures that a
//! test arms.

use crate::store::StoreErrorKind;
use std::fmt;

/// The calls of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A large object is begun.
    Create,
    /// A part of a large object.
    PutPart,
    /// A large object is completed.
    Finish,
    /// The writer of a large object aborts it.
    Abort,
    /// A spooled object is put.
    PutSpooled,
    /// A small object is put.
    PutNew,
    /// An object or a range of it is read.
    Get,
    /// The evidence for an object is read.
    Head,
    /// All versions of an object are requested.
    AnyVersion,
    /// A page of objects is listed; the key is the prefix.
    List,
    /// A page of a listing with a delimiter; the key is the prefix.
    ListFolders,
    /// An object is deleted.
    Delete,
    /// Unfinished uploads are listed; the key is the prefix.
    Unfinished,
    /// An unfinished upload is removed.
    AbortUnfinished,
    /// An object is locked for longer.
    ExtendLock,
}

impl Operation {
    /// Returns the operation for error messages: "put", "list".
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Create => "begin upload of",
            Self::PutPart => "upload part of",
            Self::Finish => "complete upload of",
            Self::Abort => "abort upload of",
            Self::PutSpooled | Self::PutNew => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::AnyVersion => "list versions of",
            Self::List | Self::ListFolders => "list",
            Self::Delete => "delete",
            Self::Unfinished => "list unfinished uploads under",
            Self::AbortUnfinished => "remove unfinished upload of",
            Self::ExtendLock => "extend the lock of",
        }
    }
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The call had its effect and reported success.
    Done,
    /// The call changed nothing and reported a failure.
    Failed(StoreErrorKind),
    /// The call had its effect, but reported a failure.
    ReplyLost(StoreErrorKind),
}

/// A call that the store received, with the outcome that it reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreEvent {
    /// The called function of the store.
    pub operation: Operation,
    /// The key, or the prefix.
    pub key: String,
    /// The effect of the call and the reported result.
    pub outcome: Outcome,
}

impl fmt::Display for StoreEvent {
    /// Writes `PutNew tank/@id/manifest.json`, followed by the outcome unless it is `Done`: short
    /// lines for tests.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.operation, self.key)?;
        match self.outcome {
            Outcome::Done => Ok(()),
            Outcome::Failed(kind) => write!(f, " failed {kind:?}"),
            Outcome::ReplyLost(kind) => write!(f, " reply lost {kind:?}"),
        }
    }
}

/// Whether a failing call still has its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    After,
}

/// An armed failure: by default of the next call of any kind, once.
#[derive(Debug, Clone)]
pub struct Fault {
    kind: StoreErrorKind,
    when: When,
    operation: Option<Operation>,
    key_part: String,
    calls_before: usize,
    forever: bool,
}

impl Fault {
    /// Makes a failure before the effect: the call changes nothing.
    pub fn before(kind: StoreErrorKind) -> Self {
        Self {
            kind,
            when: When::Before,
            operation: None,
            key_part: String::new(),
            calls_before: 0,
            forever: false,
        }
    }

    /// Makes a failure after the effect: the reply is lost.
    pub fn after(kind: StoreErrorKind) -> Self {
        Self {
            when: When::After,
            ..Self::before(kind)
        }
    }

    /// Counts only calls of this operation.
    #[must_use]
    pub fn of(self, operation: Operation) -> Self {
        Self {
            operation: Some(operation),
            ..self
        }
    }

    /// Counts only calls on keys (or prefixes) that have `part` in them.
    #[must_use]
    pub fn on(self, part: &str) -> Self {
        Self {
            key_part: part.to_owned(),
            ..self
        }
    }

    /// Fails the `n`-th of these calls, counted from 1 and from now on.
    #[must_use]
    pub fn nth(self, n: usize) -> Self {
        Self {
            calls_before: n.saturating_sub(1),
            ..self
        }
    }

    /// Repeats the failure for all later calls.
    #[must_use]
    pub fn forever(self) -> Self {
        Self {
            forever: true,
            ..self
        }
    }

    fn concerns(&self, operation: Operation, key: &str) -> bool {
        self.operation.is_none_or(|wanted| wanted == operation) && key.contains(&self.key_part)
    }
}

/// The fate of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Works,
    FailsBefore(StoreErrorKind),
    FailsAfter(StoreErrorKind),
}

/// Counts this call for all armed faults, and removes the one that applies.
pub(super) fn next_fate(faults: &mut Vec<Fault>, operation: Operation, key: &str) -> Fate {
    let mut due = None;
    for (index, fault) in faults.iter_mut().enumerate() {
        if !fault.concerns(operation, key) {
            continue;
        }
        if fault.calls_before > 0 {
            fault.calls_before -= 1;
        } else if due.is_none() {
            due = Some(index);
        }
    }
    let Some(index) = due else { return Fate::Works };
    let fault = if faults[index].forever {
        faults[index].clone()
    } else {
        faults.remove(index)
    };
    match fault.when {
        When::Before => Fate::FailsBefore(fault.kind),
        When::After => Fate::FailsAfter(fault.kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use StoreErrorKind::Unavailable;

    #[test]
    fn fault_fails_only_the_call_it_was_set_for() {
        let mut faults = vec![
            Fault::after(Unavailable)
                .of(Operation::PutNew)
                .on("manifest")
                .nth(2),
        ];
        for (operation, key, fate) in [
            (Operation::Head, "manifest", Fate::Works),
            (Operation::PutNew, "started", Fate::Works),
            (Operation::PutNew, "manifest", Fate::Works),
            (Operation::PutNew, "manifest", Fate::FailsAfter(Unavailable)),
            (Operation::PutNew, "manifest", Fate::Works),
        ] {
            assert_eq!(
                next_fate(&mut faults, operation, key),
                fate,
                "{operation:?} {key}"
            );
        }
        assert!(faults.is_empty());
    }

    #[test]
    fn permanent_fault_fails_every_later_call() {
        let mut faults = vec![Fault::before(Unavailable).nth(2).forever()];
        let fates: Vec<Fate> = (0..4)
            .map(|_| next_fate(&mut faults, Operation::Get, "k"))
            .collect();
        let fails = Fate::FailsBefore(Unavailable);
        assert_eq!(fates, [Fate::Works, fails, fails, fails]);
    }
}
