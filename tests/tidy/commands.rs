//! The rule for commands in messages: a person pastes them into a shell, and dataset names have
//! spaces. So every value in a command was quoted for a shell, and its name says so.

use super::{Breach, Source, production};
use proc_macro2::{TokenStream, TokenTree};

/// The beginnings of commands. Prose that begins with the name of a program has no such second
/// word.
const COMMANDS: [&str; 43] = [
    "zfs allow ",
    "zfs change-key ",
    "zfs create ",
    "zfs destroy ",
    "zfs get ",
    "zfs hold ",
    "zfs inherit ",
    "zfs load-key ",
    "zfs mount ",
    "zfs promote ",
    "zfs receive ",
    "zfs release ",
    "zfs rename ",
    "zfs rollback ",
    "zfs send ",
    "zfs set ",
    "zfs snapshot ",
    "zfs unmount ",
    "zpool export ",
    "zpool import ",
    "zpool scrub ",
    "zpool status ",
    "zpool upgrade ",
    "zfs-backup -",
    "zfs-backup accept-store ",
    "zfs-backup adopt ",
    "zfs-backup drill ",
    "zfs-backup forget ",
    "zfs-backup holds ",
    "zfs-backup key ",
    "zfs-backup restore ",
    "zfs-backup show ",
    "zfs-backup verify-checksums ",
    "rclone copy ",
    "rclone dedupe ",
    "rclone deletefile ",
    "rclone lsjson ",
    "rclone mkdir ",
    "chmod ",
    "chown ",
    "mount -",
    "umount ",
    "find /",
];
/// Values that need no quotes: ids, and words that the program itself chooses.
const PLAIN: [&str; 5] = ["id", "option", "permissions", "settings", "uid"];

/// Values in commands are quoted for a shell.
pub(super) fn unquoted_commands(sources: &[Source]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (source, rust) in production(sources) {
        let mut literals = Vec::new();
        let stream: TokenStream = source.text.parse().unwrap_or_default();
        collect_literals(stream, &mut literals);
        for (line, text) in literals {
            if rust.is_test_line(line) {
                continue;
            }
            let values = COMMANDS
                .iter()
                .flat_map(|command| values_of(&text, command));
            breaches.extend(values.filter(|value| !is_quoted(value)).map(|value| {
                let what = format!(
                    "a command has the value {{{value}}}: quote it for a shell, and name it {{quoted..}}"
                );
                Breach::new(source, line, what)
            }));
        }
    }
    breaches
}

fn is_quoted(value: &str) -> bool {
    let is_constant = !value.is_empty()
        && value
            .chars()
            .all(|letter| letter.is_uppercase() || letter == '_');
    value.starts_with("quoted") || PLAIN.contains(&value) || is_constant
}

fn collect_literals(stream: TokenStream, literals: &mut Vec<(usize, String)>) {
    for tree in stream {
        match tree {
            TokenTree::Group(group) => collect_literals(group.stream(), literals),
            TokenTree::Literal(literal) => {
                let line = literal.span().start().line;
                if let syn::Lit::Str(text) = syn::Lit::new(literal) {
                    literals.push((line, text.value()));
                }
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
    }
}

/// Returns the names of the values in each such command of a text. A command ends at a backtick, a
/// semicolon, a comma or a line feed.
fn values_of<'t>(text: &'t str, command: &'t str) -> impl Iterator<Item = &'t str> {
    text.match_indices(command)
        .filter(|(at, _)| {
            let before = text[..*at].chars().next_back();
            before.is_none_or(|before| !(before.is_alphanumeric() || "-./".contains(before)))
        })
        .flat_map(|(at, _)| {
            let rest = &text[at..];
            let end = rest.find(['`', ';', ',', '\n']).unwrap_or(rest.len());
            rest[..end].split('{').skip(1)
        })
        .filter_map(|value| value.split_once('}'))
        .map(|(value, _)| value.split(':').next().unwrap_or(value))
}
