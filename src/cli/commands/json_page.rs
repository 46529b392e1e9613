//! `docs/json.md` and the types of the documents describe the same fields.

#[cfg(test)]
mod samples;

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: &str = include_str!("../../../docs/json.md");

/// Fields whose contents another page describes, or whose keys are free texts.
const NOT_DESCRIBED: [&str; 3] = ["manifest", "objects", "output"];

/// The fields of a section by their paths, each with the section that describes its contents.
type Section = BTreeMap<String, Option<String>>;

/// Reads the sections of the page, by their headings.
fn sections(page: &str) -> BTreeMap<String, Section> {
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    let mut heading = String::new();
    let mut above = String::new();
    for line in page.lines() {
        if let Some(text) = line.strip_prefix("## ") {
            heading = text.replace('`', "");
            above.clear();
            sections.insert(heading.clone(), Section::new());
        } else if let Some(row) = line.strip_prefix("| `") {
            let (fields, meaning) = row.split_once(" | ").unwrap();
            let section = sections.get_mut(&heading).unwrap();
            for path in paths(&format!("`{fields}"), &above) {
                section.insert(path, linked(meaning));
            }
        } else if line.ends_with(':') {
            above = format!("{}.", quoted(line)[0]);
        }
    }
    sections
}

fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Returns the paths that the first cell of a row names: `a`, `b` or `a`: `b`, `c`.
fn paths(cell: &str, above: &str) -> Vec<String> {
    let (parents, fields) = cell.split_once(": ").unwrap_or((cell, ""));
    let mut paths = Vec::new();
    for parent in quoted(parents) {
        paths.push(format!("{above}{parent}"));
        for field in quoted(fields) {
            paths.push(format!("{above}{parent}.{field}"));
        }
    }
    paths
}

/// Returns the heading of the section to which the text links.
fn linked(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("](#")?;
    let (target, _) = rest.split_once(')')?;
    Some(target.replace('-', " "))
}

/// Returns the paths of a section, with those of the sections to which it links.
fn documented(sections: &BTreeMap<String, Section>, heading: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, link) in &sections[heading] {
        found.insert(path.clone());
        let Some(link) = link else { continue };
        let (title, _) = sections
            .iter()
            .find(|(title, _)| title.to_lowercase() == *link)
            .unwrap();
        for below in documented(sections, title) {
            found.insert(format!("{path}.{below}"));
        }
    }
    found
}

/// Collects the paths of a document in `all`, and in `filled` those with a value.
fn collect(value: &Value, path: &str, all: &mut BTreeSet<String>, filled: &mut BTreeSet<String>) {
    match value {
        Value::Null => {}
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect(item, path, all, filled)),
        Value::Object(fields) => {
            for (name, field) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                let below = format!("{path}{dot}{name}");
                all.insert(below.clone());
                if NOT_DESCRIBED.contains(&name.as_str()) && !field.is_number() {
                    filled.insert(below);
                } else {
                    collect(field, &below, all, filled);
                }
            }
            filled.insert(path.to_owned());
        }
        _ => {
            filled.insert(path.to_owned());
        }
    }
}

/// Returns what differs between a section of the page and the documents that it describes.
fn differences(page: &str, heading: &str, documents: &[Value]) -> Vec<String> {
    let mut all = BTreeSet::new();
    let mut filled = BTreeSet::new();
    for document in documents {
        collect(document, "", &mut all, &mut filled);
    }
    let documented = documented(&sections(page), heading);
    let empty = all.difference(&filled);
    let missing = all.difference(&documented);
    let gone = documented.difference(&all);
    empty
        .map(|path| format!("{heading}: no document has a value for {path}"))
        .chain(missing.map(|path| format!("{heading}: {path} is not described")))
        .chain(gone.map(|path| format!("{heading}: {path} is described and not printed")))
        .collect()
}

#[test]
fn json_page_lists_exactly_the_fields_of_the_documents() {
    let mut described: BTreeSet<String> = ["A record", "A probe", "What a store holds"]
        .map(str::to_owned)
        .into();
    let mut found = Vec::new();
    for (heading, documents) in samples::all() {
        found.extend(differences(PAGE, heading, &documents));
        described.insert(heading.to_owned());
    }
    assert!(found.is_empty(), "docs/json.md:\n{}", found.join("\n"));
    assert_eq!(
        sections(PAGE).into_keys().collect::<BTreeSet<_>>(),
        described
    );
}

#[test]
fn field_that_only_the_page_or_only_the_program_has_is_found() {
    let (heading, mut documents) = samples::all().remove(0);
    let renamed = PAGE.replace("`lock_file`", "`lock_path`");
    assert_eq!(
        differences(&renamed, heading, &documents),
        [
            "lock, unlock: lock_file is not described",
            "lock, unlock: lock_path is described and not printed",
        ]
    );
    documents[0]["new"] = Value::Null;
    assert_eq!(
        differences(PAGE, heading, &documents),
        [
            "lock, unlock: no document has a value for new",
            "lock, unlock: new is not described",
        ]
    );
}
