//! The files and folders that a configuration names: which of them do not exist, and which of them
//! other users could change.

use super::Config;
use super::declaration::visit_keys;
use super::form::{Form, Place};
use super::paths::Environment;
use super::problem::{Notice, Problem};
use super::sequence::SequenceStep;
use super::trust::{self, FileError};
use super::visitor::KeyVisitor;
use std::path::PathBuf;

impl Config {
    /// Returns the named files that do not exist, for `config check`. Credentials of systemd are
    /// not checked outside a service.
    pub fn missing_files(&self, env: &Environment) -> Vec<Notice> {
        let mut missing = Vec::new();
        for (key, place) in self.named_places() {
            if let Some((path, Err(error))) = place.judge(env)
                && error.is_not_found()
            {
                let text = format!("{key} names {}, which does not exist", path.display());
                missing.push(Notice { key, text });
            }
        }
        missing
    }

    /// Returns the files and folders that users other than root and the running user could change.
    pub(super) fn distrusted_places(&self, env: &Environment) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (key, place) in self.named_places() {
            let Some((path, Err(error @ FileError::Distrusted { .. }))) = place.judge(env) else {
                continue;
            };
            let what = match place {
                Place::Folder(..) => format!("the folder {}", path.display()),
                Place::File(..) | Place::Secret(_) => "a file".to_owned(),
            };
            problems.push(Problem {
                line: self.line_of(&key),
                message: format!("names {what} that cannot be trusted: {error}"),
                hint: match &*key {
                    "main.intermediate_basedir" => error.hint_for_backups(),
                    _ => error.hint(),
                },
                key: Some(key),
            });
        }
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
    /// Judges the place. Returns `None` for a credential outside a service, whose path is not known.
    fn judge(&self, env: &Environment) -> Option<(PathBuf, Result<(), FileError>)> {
        let (path, demand) = match self {
            Self::Folder(path, rule) => {
                return Some((path.clone(), trust::judge_place(path, *rule, env.uid)));
            }
            Self::File(path, demand) => (path.clone(), *demand),
            Self::Secret(file) => (file.locate(env).ok()?, file.demand()),
        };
        let opened = trust::open_trusted(&path, demand, env.uid);
        Some((path, opened.map(drop)))
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
