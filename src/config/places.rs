//! The files and folders that a configuration names: which of them do not exist, and which of them
//! other users could change.

use super::Config;
use super::declaration::{KeyVisitor, visit_keys};
use super::form::{Form, Place};
use super::paths::Environment;
use super::problem::{Notice, Problem};
use super::sequence::SequenceStep;
use super::trust::{self, Demand, FileError};
use std::path::PathBuf;

/// The key of the intermediate directory, as problems name it.
const INTERMEDIATE_BASEDIR: &str = "main.intermediate_basedir";

impl Config {
    /// Returns the named files that do not exist, for `config check`. Credentials of systemd are
    /// not checked outside a service.
    pub fn missing_files(&self, env: &Environment) -> Vec<Notice> {
        let places = self.named_places().into_iter();
        places
            .filter_map(|(key, place)| {
                let (path, demand) = place.file(env)?;
                let error = trust::open_trusted(&path, demand, env.uid).err()?;
                error.is_not_found().then(|| Notice {
                    text: format!("{key} names {}, which does not exist", path.display()),
                    key,
                })
            })
            .collect()
    }

    /// Returns the files and folders that users other than root and the running user could change.
    pub(super) fn distrusted_places(&self, env: &Environment) -> Vec<Problem> {
        let places = self.named_places().into_iter();
        let mut problems: Vec<Problem> = places
            .filter_map(|(key, place)| {
                let (what, error) = place.distrusted(env)?;
                let hint = if key == INTERMEDIATE_BASEDIR {
                    error.hint_for_backups()
                } else {
                    error.hint()
                };
                Some(Problem {
                    line: self.line_of(&key),
                    key: Some(key),
                    message: format!("names {what} that cannot be trusted: {error}"),
                    hint,
                })
            })
            .collect();
        problems.sort_by_key(|problem| problem.line);
        problems
    }

    /// Returns the named files and folders with their keys.
    fn named_places(&self) -> Vec<(String, Place)> {
        let mut places = Places {
            section: "",
            found: Vec::new(),
        };
        visit_keys(&mut self.clone(), &mut places);
        // A lockfile in the folder for state needs no second judgement of the folder.
        places.found.retain(|(key, place)| {
            let in_state_dir =
                matches!(place, Place::Folder(folder, _) if *folder == self.state_dir);
            key != "main.lock_file" || !in_state_dir
        });
        places.found
    }
}

impl Place {
    /// Returns the path of a file, and its demand.
    fn file(&self, env: &Environment) -> Option<(PathBuf, Demand)> {
        match self {
            Self::File(path, demand) => Some((path.clone(), *demand)),
            Self::Secret(file) => Some((file.locate(env).ok()?, file.demand())),
            Self::Folder(..) => None,
        }
    }

    /// Judges the place. Returns its name for a message and the reason if it is not trusted.
    fn distrusted(&self, env: &Environment) -> Option<(String, FileError)> {
        let (what, judged) = if let Self::Folder(path, rule) = self {
            (
                format!("the folder {}", path.display()),
                trust::judge_place(path, *rule, env.uid),
            )
        } else {
            let (path, demand) = self.file(env)?;
            let opened = trust::open_trusted(&path, demand, env.uid);
            ("a file".to_owned(), opened.map(drop))
        };
        let error = judged.err()?;
        matches!(error, FileError::Distrusted { .. }).then_some((what, error))
    }
}

/// Collects the files and folders that values name.
struct Places {
    section: &'static str,
    found: Vec<(String, Place)>,
}

impl KeyVisitor for Places {
    fn section(&mut self, name: &'static str) {
        self.section = name;
    }

    fn key<T: 'static>(&mut self, name: &'static str, value: &mut Option<T>, form: Form<T>) {
        let place = value.as_ref().and_then(|value| form.place(value));
        self.found
            .extend(place.map(|place| (format!("{}.{name}", self.section), place)));
    }

    fn steps(&mut self, _: &mut Vec<SequenceStep>) {}
}
