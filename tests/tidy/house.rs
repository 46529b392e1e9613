//! Which file uses which: the direction between the folders inside a room, and circles.

use super::{Breach, Rust, Source, Token, production};
use std::collections::{BTreeMap, BTreeSet};

/// The folders of a room, each with those that it may use.
type Folders = &'static [(&'static str, &'static [&'static str])];

/// Which folders and files inside a room another one there may use, each after those that it uses.
pub(crate) const SUBROOMS: &[(&str, Folders)] = &[
    (
        "run",
        &[
            ("error", &[]),
            ("blocking", &["error"]),
            ("transfer", &["error"]),
            ("hooks", &["error", "transfer"]),
            ("clock", &["error"]),
            ("identity", &["error"]),
            ("probe", &["error"]),
            ("runner", &[]),
            ("commit", &["error"]),
            ("keys", &["error", "commit"]),
            (
                "restore",
                &["error", "blocking", "transfer", "runner", "keys"],
            ),
            (
                "verify",
                &["error", "blocking", "transfer", "keys", "restore"],
            ),
            ("prune", &["error", "transfer", "clock", "identity"]),
            (
                "pool",
                &[
                    "error", "transfer", "hooks", "clock", "identity", "restore", "prune",
                ],
            ),
            (
                "backup",
                &[
                    "error", "blocking", "transfer", "identity", "commit", "keys", "verify", "pool",
                ],
            ),
            (
                "copy",
                &[
                    "error", "blocking", "transfer", "identity", "commit", "keys", "verify",
                ],
            ),
            ("doctor", &["error", "runner", "restore", "pool"]),
        ],
    ),
    (
        "cli",
        &[
            ("args", &[]),
            ("screen", &["args"]),
            ("failure", &["screen"]),
            ("context", &["args", "screen", "failure"]),
            ("lock", &["args", "screen", "failure", "context"]),
            ("open", &["args", "screen", "failure", "context"]),
            ("parallel", &["context"]),
            (
                "commands",
                &[
                    "args", "screen", "failure", "context", "lock", "open", "parallel",
                ],
            ),
            (
                "perform",
                &["args", "screen", "failure", "context", "commands"],
            ),
        ],
    ),
];

/// Folders inside a room use only those that [`SUBROOMS`] allows them.
pub(crate) fn subrooms(sources: &[Source]) -> Vec<Breach> {
    let house = House::new(sources);
    let mut breaches = Vec::new();
    for arrow in &house.arrows {
        let [from, to] = [&arrow.from, &arrow.to].map(|module| two_segments(module));
        let (Some((room, folder)), Some((used_room, used))) = (from, to) else {
            continue;
        };
        let Some((_, folders)) = SUBROOMS.iter().find(|(name, _)| *name == room) else {
            continue;
        };
        if used_room != room || used == folder {
            continue;
        }
        let allowed = folders.iter().find(|(name, _)| *name == folder);
        if !allowed.is_some_and(|(_, allowed)| allowed.contains(&used)) {
            let what = format!("{room}::{folder} uses {room}::{used}");
            breaches.push(Breach::new(arrow.source, arrow.line, what));
        }
    }
    breaches
}

fn two_segments(module: &str) -> Option<(&str, &str)> {
    let (room, rest) = module.split_once("::")?;
    Some((room, rest.split("::").next().unwrap_or(rest)))
}

/// No two files use each other, directly or through others. A file and the files of its own
/// sub-modules count as one: the head names its parts, and the parts use its types.
pub(crate) fn circles(sources: &[Source]) -> Vec<Breach> {
    let house = House::new(sources);
    let mut breaches = Vec::new();
    for circle in house.circles() {
        let names: Vec<&str> = circle.iter().map(String::as_str).collect();
        let what = format!("a circle of files: {}", names.join(", "));
        let first = house
            .arrows
            .iter()
            .find(|arrow| circle.contains(&arrow.from) && circle.contains(&arrow.to));
        breaches.extend(first.map(|arrow| Breach::new(arrow.source, arrow.line, what)));
    }
    breaches
}

/// One file uses another.
struct Arrow<'a> {
    source: &'a Source,
    line: usize,
    from: String,
    to: String,
}

/// The files of the crate as modules, and which uses which.
struct House<'a> {
    arrows: Vec<Arrow<'a>>,
}

impl<'a> House<'a> {
    fn new(sources: &'a [Source]) -> Self {
        let files: Vec<(&Source, &Rust, String)> = production(sources)
            .into_iter()
            .filter(|(source, _)| !["lib", "main", "fuzzing"].contains(&source.room()))
            .map(|(source, rust)| (source, rust, module_of(&source.path)))
            .collect();
        let modules: BTreeSet<String> = files.iter().map(|(.., module)| module.clone()).collect();
        let mut exported = BTreeMap::new();
        let mut found = Vec::new();
        for (source, rust, module) in &files {
            for path in paths_of(rust) {
                let Some((to, item)) = resolve(&path.segments, module, &modules) else {
                    continue;
                };
                if path.is_exported && to != *module {
                    let name = path.segments.last().cloned().unwrap_or_default();
                    exported.insert((module.clone(), name), to.clone());
                }
                found.push((*source, path.line, module, to, item));
            }
        }
        let mut arrows = Vec::new();
        for (source, line, from, mut to, item) in found {
            while let Some(origin) = exported.get(&(to.clone(), item.clone())) {
                to.clone_from(origin);
            }
            if !is_one_family(from, &to) {
                let from = from.clone();
                arrows.push(Arrow {
                    source,
                    line,
                    from,
                    to,
                });
            }
        }
        Self { arrows }
    }

    /// The sets of modules that reach each other.
    fn circles(&self) -> BTreeSet<BTreeSet<String>> {
        let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for arrow in &self.arrows {
            next.entry(&arrow.from).or_default().insert(&arrow.to);
        }
        let reached = |from: &str| {
            let mut seen: BTreeSet<&str> = BTreeSet::new();
            let mut open: Vec<&str> = next.get(from).into_iter().flatten().copied().collect();
            while let Some(module) = open.pop() {
                if seen.insert(module) {
                    open.extend(next.get(module).into_iter().flatten());
                }
            }
            seen
        };
        let all: BTreeMap<&str, BTreeSet<&str>> = next
            .keys()
            .map(|module| (*module, reached(module)))
            .collect();
        let circle_of = |module: &str| -> BTreeSet<String> {
            let mutual = all[module]
                .iter()
                .filter(|other| all.get(**other).is_some_and(|back| back.contains(module)));
            mutual.map(|other| (*other).to_owned()).collect()
        };
        let circles = all.keys().map(|module| circle_of(module));
        circles.filter(|circle| !circle.is_empty()).collect()
    }
}

fn module_of(path: &str) -> String {
    let below = path.strip_prefix("src/").unwrap_or(path);
    below.trim_end_matches(".rs").replace('/', "::")
}

/// Whether one of them is the other or above it.
fn is_one_family(one: &str, other: &str) -> bool {
    let is_above = |above: &str, below: &str| {
        below
            .strip_prefix(above)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    is_above(one, other) || is_above(other, one)
}

/// A path as it stands in a file, `use` groups taken apart.
struct UsedPath {
    segments: Vec<String>,
    line: usize,
    /// It stands in a `pub use`.
    is_exported: bool,
}

fn paths_of(rust: &Rust) -> Vec<UsedPath> {
    let tokens = &rust.tokens;
    let mut paths = Vec::new();
    let (mut at, mut is_exported) = (0, false);
    while at < tokens.len() {
        let text = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
        match text(at) {
            "use" => is_exported = at > 0 && [")", "pub"].contains(&text(at - 1)),
            ";" => is_exported = false,
            _ => {}
        }
        let begins = text(at + 1) == ":" && text(at + 2) == ":" && (at == 0 || text(at - 1) != ":");
        if !begins || rust.is_test_line(tokens[at].line) {
            at += 1;
            continue;
        }
        let mut leaves = Vec::new();
        at = read_path(tokens, at, &[], &mut leaves);
        paths.extend(leaves.into_iter().map(|(segments, line)| UsedPath {
            segments,
            line,
            is_exported,
        }));
    }
    paths
}

/// Reads a path that begins at a word, or a group of paths. Returns the index behind it.
fn read_path(
    tokens: &[Token],
    mut at: usize,
    before: &[String],
    leaves: &mut Vec<(Vec<String>, usize)>,
) -> usize {
    let text = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    let mut segments = before.to_vec();
    let line = tokens.get(at).map_or(0, |token| token.line);
    loop {
        if text(at) == "{" {
            at += 1;
            while at < tokens.len() && text(at) != "}" {
                at = match text(at) {
                    "," => at + 1,
                    "as" => at + 2,
                    _ => read_path(tokens, at, &segments, leaves),
                };
            }
            return at + 1;
        }
        segments.push(text(at).to_owned());
        let goes_on = text(at + 1) == ":" && text(at + 2) == ":" && text(at + 3) != "<";
        if !goes_on {
            segments.retain(|segment| segment != "self" && segment != "*");
            leaves.push((segments, line));
            return at + 1;
        }
        at += 3;
    }
}

/// The module that a path leads to, and the item in it.
fn resolve(path: &[String], from: &str, modules: &BTreeSet<String>) -> Option<(String, String)> {
    let own: Vec<&str> = from.split("::").collect();
    let climbs = path.iter().take_while(|word| *word == "super").count();
    let full: Vec<&str> = match path.first()?.as_str() {
        "crate" => path[1..].iter().map(String::as_str).collect(),
        "super" => {
            let kept = own.len().checked_sub(climbs)?;
            let rest = path[climbs..].iter().map(String::as_str);
            own[..kept].iter().copied().chain(rest).collect()
        }
        first if modules.contains(&format!("{from}::{first}")) => own
            .iter()
            .copied()
            .chain(path.iter().map(String::as_str))
            .collect(),
        _ => return None,
    };
    let length = (1..=full.len())
        .rev()
        .find(|length| modules.contains(&full[..*length].join("::")))?;
    let item = full.get(length).copied().unwrap_or_default();
    Some((full[..length].join("::"), item.to_owned()))
}
