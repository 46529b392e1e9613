//! The house rules of the architecture, held against every file in each test run. A rule in prose
//! rots.
//!
//! [`RULES`] is the list; the tables under it are what to change when a rule changes. Each rule
//! gets all files and gives the places that break it; each is shown to fail on a small bad sample,
//! so that none can pass by being blind.

#[path = "tidy/commands.rs"]
mod commands;
#[path = "tidy/comments.rs"]
mod comments;
#[path = "tidy/house.rs"]
mod house;

use commands::unquoted_commands;
use comments::comment_openings;
use house::{SUBROOMS, circles, subrooms};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

type Check = fn(&[Source]) -> Vec<Breach>;
type Rule = (&'static str, Check);

const RULES: &[Rule] = &[
    ("rooms use only the rooms before them", direction),
    (
        "folders inside a room use only the folders before them",
        subrooms,
    ),
    ("no two files use each other", circles),
    ("async lives in the outer rooms", async_rooms),
    (
        "unsafe lives in two files, each block with a SAFETY comment",
        unsafe_files,
    ),
    ("files are short", file_lines),
    ("functions are short", function_lines),
    ("no unwrap, and few panics, outside tests", panics),
    ("nothing branches on any refusal", refusal_branches),
    ("every file says what it holds", file_docs),
    ("no registry is named", registry_names),
    ("comments open with their subject", comment_openings),
    (
        "values in commands are quoted for a shell",
        unquoted_commands,
    ),
];

/// Which rooms a room may use besides itself, each after those that it uses. The map in `lib.rs`
/// has the same order.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("sign", &["model"]),
    ("keyring", &["model", "sign"]),
    ("stream", &["model"]),
    ("store", &["model"]),
    ("config", &["model", "store"]),
    ("zfs", &["model", "stream"]),
    ("manifest", &["model", "sign", "stream", "store"]),
    // The rules of retention are plain data of the configuration; two sets of the same types would
    // drift apart.
    ("plan", &["model", "config", "zfs", "manifest"]),
    // Of the stores only what a listing and a probe say: `state` may not await.
    ("state", &["model", "store", "manifest"]),
    (
        "catalog",
        &[
            "model", "sign", "keyring", "store", "manifest", "plan", "state",
        ],
    ),
    (
        "run",
        &[
            "model", "sign", "keyring", "stream", "store", "config", "zfs", "manifest", "plan",
            "state", "catalog",
        ],
    ),
    (
        "cli",
        &[
            "model", "sign", "keyring", "stream", "store", "config", "zfs", "manifest", "plan",
            "state", "catalog", "run",
        ],
    ),
    ("main", &["cli"]),
];
/// The rooms that may be asynchronous.
const ASYNC_ROOMS: [&str; 5] = ["store", "catalog", "run", "cli", "main"];
/// The only files with unsafe code that people write.
const UNSAFE_FILES: [&str; 2] = ["src/zfs/nvlist.rs", "src/zfs/core.rs"];
/// Written by bindgen: no rule of form applies.
const GENERATED: [&str; 1] = ["src/zfs/sys.rs"];
/// Written by cargo: it names the registry in every entry.
const NOT_READ: [&str; 4] = ["Cargo.lock", "target", ".git", "mutants.out"];

const FILE_LINES_MAX: usize = 700;
const FILE_LINES_WITH_TESTS_MAX: usize = 1200;
const FILE_LINES_LONG: usize = 400;
const LONG_FILES_PERCENT_MAX: usize = 10;
const FUNCTION_LINES_MAX: usize = 100;
const FUNCTION_LINES_LONG: usize = 70;
const LONG_FUNCTIONS_PERCENT_MAX: usize = 1;
const PANICS_PER_THOUSAND_LINES_MAX: usize = 5;
/// Lines of one statement that may stand between a SAFETY comment and its block.
const SAFETY_DISTANCE_LINES_MAX: usize = 4;

/// The hosts of package registries, in two pieces, so that this file does not name them itself.
const REGISTRIES: [(&str, &str); 5] = [
    ("crates", ".io"),
    ("npmjs", ".org"),
    ("pypi", ".org"),
    ("rubygems", ".org"),
    ("proxy.golang", ".org"),
];

/// A place that breaks a rule.
struct Breach {
    path: String,
    line: usize,
    what: String,
}

impl Breach {
    fn new(source: &Source, line: usize, what: impl Into<String>) -> Self {
        Self {
            path: source.path.clone(),
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// One file. `rust` is there for Rust files only.
struct Source {
    path: String,
    text: String,
    rust: Option<Rust>,
}

/// A Rust file taken apart.
struct Rust {
    /// All tokens outside comments and literals that are words or marks, in order.
    tokens: Vec<Token>,
    functions: Vec<Function>,
    /// Lines of items under `#[cfg(test)]`.
    test_lines: Vec<RangeInclusive<usize>>,
    /// Modules in files of their own that are declared under `#[cfg(test)]`.
    test_modules: Vec<String>,
}

struct Token {
    text: String,
    line: usize,
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let rust = path.ends_with(".rs").then(|| Rust::parse(path, text));
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            rust,
        }
    }

    /// Our own code: Rust below `src`, not generated.
    fn own(&self) -> Option<&Rust> {
        let own = self.path.starts_with("src/") && !GENERATED.contains(&self.path.as_str());
        self.rust.as_ref().filter(|_| own)
    }

    /// The room: `src/store.rs` and everything below `src/store/` is "store".
    fn room(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        below
            .split('/')
            .next()
            .unwrap_or(below)
            .trim_end_matches(".rs")
    }

    fn line_count(&self) -> usize {
        self.text.lines().count()
    }

    /// The lines outside tests.
    fn own_line_count(&self, rust: &Rust) -> usize {
        (1..=self.line_count())
            .filter(|line| !rust.is_test_line(*line))
            .count()
    }

    /// The file of a module that this file declares.
    fn module_path(&self, module: &str) -> String {
        match self.path.as_str() {
            "src/lib.rs" | "src/main.rs" => format!("src/{module}.rs"),
            path => format!(
                "{}/{module}.rs",
                path.trim_end_matches(".rs").trim_end_matches("/mod")
            ),
        }
    }
}

impl Rust {
    fn parse(path: &str, text: &str) -> Self {
        let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let stream: TokenStream = text
            .parse()
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut rust = Self {
            tokens: Vec::new(),
            functions: Vec::new(),
            test_lines: Vec::new(),
            test_modules: Vec::new(),
        };
        flatten(stream, &mut rust.tokens);
        rust.visit_file(&file);
        rust
    }

    fn is_test_line(&self, line: usize) -> bool {
        self.test_lines.iter().any(|lines| lines.contains(&line))
    }

    /// Runs of tokens outside tests that match the words, by the line of the first.
    fn find<'t>(&'t self, words: &'t [&str]) -> impl Iterator<Item = usize> + 't {
        let runs = self.tokens.windows(words.len());
        let matching = runs.filter(move |run| {
            run.iter()
                .zip(words)
                .all(|(token, word)| token.text == *word)
        });
        matching
            .map(|run| run[0].line)
            .filter(|line| !self.is_test_line(*line))
    }
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                tokens.push(Token {
                    text: open.to_owned(),
                    line,
                });
                flatten(group.stream(), tokens);
                tokens.push(Token {
                    text: close.to_owned(),
                    line: group.span_close().start().line,
                });
            }
            TokenTree::Literal(literal) => {
                let empty = literal.to_string() == "\"\"";
                tokens.push(Token {
                    text: if empty { "\"\"" } else { "literal" }.to_owned(),
                    line,
                });
            }
            TokenTree::Ident(ident) => tokens.push(Token {
                text: ident.to_string(),
                line,
            }),
            TokenTree::Punct(punct) => tokens.push(Token {
                text: punct.as_char().to_string(),
                line,
            }),
        }
    }
}

impl Visit<'_> for Rust {
    fn visit_item(&mut self, item: &syn::Item) {
        if let Some(attributes) = item_attributes(item)
            && attributes.iter().any(is_cfg_test)
        {
            self.test_lines
                .push(item.span().start().line..=item.span().end().line);
            if let syn::Item::Mod(module) = item
                && module.content.is_none()
            {
                self.test_modules.push(module.ident.to_string());
            }
        }
        visit::visit_item(self, item);
    }

    fn visit_item_fn(&mut self, function: &syn::ItemFn) {
        self.note_function(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &syn::ImplItemFn) {
        self.note_function(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.note_function(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

impl Rust {
    fn note_function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let line = signature.span().start().line;
        let lines = block.span().end().line - line + 1;
        self.functions.push(Function {
            name: signature.ident.to_string(),
            line,
            lines,
        });
    }
}

fn item_attributes(item: &syn::Item) -> Option<&[syn::Attribute]> {
    Some(match item {
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        _ => return None,
    })
}

/// `#[cfg(test)]` and `#[cfg(any(test, ..))]`, not `#[cfg(not(test))]`.
fn is_cfg_test(attribute: &syn::Attribute) -> bool {
    let syn::Meta::List(list) = &attribute.meta else {
        return false;
    };
    let mut tokens = Vec::new();
    flatten(list.tokens.clone(), &mut tokens);
    let has = |word: &str| tokens.iter().any(|token| token.text == word);
    list.path.is_ident("cfg") && has("test") && !has("not")
}

/// Our own files that are not declared as modules of tests.
fn production(sources: &[Source]) -> Vec<(&Source, &Rust)> {
    let own = || {
        sources
            .iter()
            .filter_map(|source| Some((source, source.own()?)))
    };
    let test_files: BTreeSet<String> = own()
        .flat_map(|(source, rust)| {
            rust.test_modules
                .iter()
                .map(|module| source.module_path(module))
        })
        .collect();
    own()
        .filter(|(source, _)| !test_files.contains(&source.path))
        .collect()
}

fn direction(sources: &[Source]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (source, rust) in production(sources) {
        let room = source.room();
        if room == "lib" {
            continue;
        }
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            breaches.push(Breach::new(
                source,
                1,
                format!("{room} is no room of the architecture"),
            ));
            continue;
        };
        for (used, line) in used_rooms(source, rust) {
            if used != room && !rust.is_test_line(line) && !allowed.contains(&used.as_str()) {
                breaches.push(Breach::new(source, line, format!("{room} uses {used}")));
            }
        }
    }
    breaches
}

/// The rooms that are named by a path from the crate's root: `crate::x`, `crate::{x, y}`, and
/// `super::x` where that is the same.
fn used_rooms(source: &Source, rust: &Rust) -> Vec<(String, usize)> {
    // src/store.rs is one module deep, src/store/key.rs two.
    let depth = source.path.matches('/').count();
    let by_climbing = ["super", ":", ":"].repeat(depth);
    let mut used = Vec::new();
    let by_name = if source.room() == "main" {
        "zfs_backup"
    } else {
        "crate"
    };
    for start in [vec![by_name, ":", ":"], by_climbing] {
        for (index, run) in rust.tokens.windows(start.len()).enumerate() {
            let climbs_from_here = index < 3 || rust.tokens[index - 3].text != "super";
            if !start.is_empty()
                && climbs_from_here
                && run
                    .iter()
                    .zip(&start)
                    .all(|(token, word)| token.text == *word)
            {
                used.extend(names_after(&rust.tokens[index + start.len()..]));
            }
        }
    }
    used.retain(|(name, _)| ROOMS.iter().any(|(room, _)| room == name));
    used
}

/// The first name of a path, or of each path in braces.
fn names_after(tokens: &[Token]) -> Vec<(String, usize)> {
    let Some(first) = tokens.first() else {
        return Vec::new();
    };
    if first.text != "{" {
        return vec![(first.text.clone(), first.line)];
    }
    let (mut depth, mut at_start, mut names) = (1, true, Vec::new());
    for token in &tokens[1..] {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => at_start = true,
            name if depth == 1 && at_start => {
                names.push((name.to_owned(), token.line));
                at_start = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn async_rooms(sources: &[Source]) -> Vec<Breach> {
    let inner = production(sources)
        .into_iter()
        .filter(|(source, _)| !ASYNC_ROOMS.contains(&source.room()));
    let mut breaches = Vec::new();
    for (source, rust) in inner {
        for words in [&["async"][..], &[".", "await"], &["tokio"]] {
            let what = format!("`{}` in a room that blocks", words.concat());
            breaches.extend(
                rust.find(words)
                    .map(|line| Breach::new(source, line, what.as_str())),
            );
        }
    }
    breaches
}

fn unsafe_files(sources: &[Source]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for source in sources {
        let Some(rust) = source.own() else { continue };
        let allowed = UNSAFE_FILES.contains(&source.path.as_str());
        for pair in rust
            .tokens
            .windows(2)
            .filter(|pair| pair[0].text == "unsafe")
        {
            let line = pair[0].line;
            if !allowed {
                breaches.push(Breach::new(
                    source,
                    line,
                    "unsafe outside the two files that may have it",
                ));
            } else if matches!(pair[1].text.as_str(), "{" | "impl")
                && !has_safety_comment(&source.text, line)
            {
                breaches.push(Breach::new(
                    source,
                    line,
                    "unsafe without a `// SAFETY:` comment before it",
                ));
            }
        }
    }
    breaches
}

/// Whether the comment above the statement says SAFETY. The statement may have begun a few lines
/// higher.
fn has_safety_comment(text: &str, line: usize) -> bool {
    let above: Vec<&str> = text.lines().take(line - 1).map(str::trim).collect();
    let begins_statement = |line: &&str| line.is_empty() || line.ends_with([';', '}']);
    let is_comment = |line: &&str| line.starts_with("//");
    let skipped = above
        .iter()
        .rev()
        .take_while(|line| !is_comment(line))
        .collect::<Vec<_>>();
    let near =
        skipped.len() < SAFETY_DISTANCE_LINES_MAX && !skipped.into_iter().any(begins_statement);
    let mut comment = above
        .iter()
        .rev()
        .skip_while(|line| !is_comment(line))
        .take_while(|line| is_comment(line));
    near && comment.any(|line| line.starts_with("// SAFETY:"))
}

/// No Rust file is too long, and most files of our own code are short. Lines of tests inside a file
/// of our own do not count: they are not read with it.
fn file_lines(sources: &[Source]) -> Vec<Breach> {
    let breach = |source: &Source, lines: usize, limit: String| {
        Breach::new(
            source,
            source.line_count(),
            format!("{lines} lines, {limit}"),
        )
    };
    let own: Vec<(&Source, usize)> = production(sources)
        .into_iter()
        .map(|(source, rust)| (source, source.own_line_count(rust)))
        .collect();
    let mut breaches = Vec::new();
    for (source, lines) in own.iter().filter(|(_, lines)| *lines > FILE_LINES_MAX) {
        breaches.push(breach(source, *lines, format!("at most {FILE_LINES_MAX}")));
    }
    let written = sources
        .iter()
        .filter(|source| source.rust.is_some() && !GENERATED.contains(&source.path.as_str()));
    for source in written.filter(|source| source.line_count() > FILE_LINES_WITH_TESTS_MAX) {
        let limit = format!("at most {FILE_LINES_WITH_TESTS_MAX} with tests");
        breaches.push(breach(source, source.line_count(), limit));
    }
    let long = own.iter().filter(|(_, lines)| *lines > FILE_LINES_LONG);
    if long.clone().count() * 100 > own.len() * LONG_FILES_PERCENT_MAX {
        let limit = format!(
            "and more than {LONG_FILES_PERCENT_MAX}% of the files are over {FILE_LINES_LONG}"
        );
        breaches.extend(long.map(|(source, lines)| breach(source, *lines, limit.clone())));
    }
    breaches
}

/// Functions of tests do not count: most of their lines are tables.
fn function_lines(sources: &[Source]) -> Vec<Breach> {
    let all: Vec<(&Source, &Function)> = production(sources)
        .into_iter()
        .flat_map(|(source, rust)| {
            rust.functions
                .iter()
                .filter(|function| !rust.is_test_line(function.line))
                .map(move |function| (source, function))
        })
        .collect();
    let over = |lines: usize| {
        all.iter()
            .filter(move |(_, function)| function.lines > lines)
    };
    let breach = |(source, function): &(&Source, &Function), limit: &str| {
        Breach::new(
            source,
            function.line,
            format!("{} has {} lines, {limit}", function.name, function.lines),
        )
    };
    let mut breaches: Vec<Breach> = over(FUNCTION_LINES_MAX)
        .map(|found| breach(found, &format!("at most {FUNCTION_LINES_MAX}")))
        .collect();
    if over(FUNCTION_LINES_LONG).count() * 100 > all.len() * LONG_FUNCTIONS_PERCENT_MAX {
        let limit = format!(
            "and more than {LONG_FUNCTIONS_PERCENT_MAX}% of the functions are over {FUNCTION_LINES_LONG}"
        );
        breaches.extend(over(FUNCTION_LINES_LONG).map(|found| breach(found, &limit)));
    }
    breaches
}

/// Only the file of `RunError` names the variant of a refusal, which a person decides about. A
/// refusal that decides something for the program has a variant of its own.
fn refusal_branches(sources: &[Source]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (source, rust) in production(sources) {
        if source.path != "src/run/error.rs" {
            let lines = rust.find(&["RunError", ":", ":", "Refused"]);
            let what = "`RunError::Refused` outside its file";
            breaches.extend(lines.map(|line| Breach::new(source, line, what)));
        }
    }
    breaches
}

fn panics(sources: &[Source]) -> Vec<Breach> {
    let (mut breaches, mut reasoned, mut line_count) = (Vec::new(), Vec::new(), 0);
    for (source, rust) in production(sources) {
        line_count += source.own_line_count(rust);
        let bare = [
            &[".", "unwrap", "(", ")"][..],
            &[".", "expect", "(", ")"],
            &[".", "expect", "(", "\"\""],
        ];
        for words in bare {
            let what = format!("`{}` without a reason why it cannot fail", words[1]);
            breaches.extend(
                rust.find(words)
                    .map(|line| Breach::new(source, line, what.as_str())),
            );
        }
        for words in [
            &[".", "expect", "(", "literal"][..],
            &["panic", "!"],
            &["unreachable", "!"],
        ] {
            reasoned.extend(
                rust.find(words)
                    .map(|line| Breach::new(source, line, "one panic too many")),
            );
        }
    }
    if reasoned.len() * 1000 > line_count * PANICS_PER_THOUSAND_LINES_MAX {
        breaches.append(&mut reasoned);
    }
    breaches
}

fn file_docs(sources: &[Source]) -> Vec<Breach> {
    let rust = sources
        .iter()
        .filter(|source| source.rust.is_some() && !GENERATED.contains(&source.path.as_str()));
    let bare = rust.filter(|source| {
        !source
            .text
            .lines()
            .any(|line| line.starts_with("//!") && line.len() > 4)
    });
    bare.map(|source| Breach::new(source, 1, "no `//!` says what the file holds"))
        .collect()
}

fn registry_names(sources: &[Source]) -> Vec<Breach> {
    let hosts = REGISTRIES.map(|(name, end)| format!("{name}{end}"));
    let mut breaches = Vec::new();
    for source in sources {
        for (index, line) in source.text.lines().enumerate() {
            let line = line.to_lowercase();
            if hosts.iter().any(|host| line.contains(host)) {
                breaches.push(Breach::new(
                    source,
                    index + 1,
                    "names the host of a package registry",
                ));
            }
        }
    }
    breaches
}

/// All text files of the repository.
fn repository() -> Vec<Source> {
    let root = std::env::var("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let root = PathBuf::from(root);
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).ok()?;
        Some(Source::new(path.strip_prefix(&root).ok()?.to_str()?, &text))
    };
    paths.into_iter().filter_map(read).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries.flatten() {
        if NOT_READ.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            collect(&entry.path(), paths);
        } else if kind.is_file() {
            paths.push(entry.path());
        }
    }
}

#[test]
fn the_repository_keeps_every_rule() {
    let sources = repository();
    assert!(
        sources.iter().any(|source| source.path == "src/lib.rs"),
        "the sources were not found"
    );
    let breaches = RULES
        .iter()
        .flat_map(|(rule, check)| check(&sources).into_iter().map(move |found| (rule, found)));
    let screen: Vec<String> = breaches
        .map(|(rule, found)| format!("{found} ({rule})"))
        .collect();
    assert!(screen.is_empty(), "\n{}\n", screen.join("\n"));
}

/// Begins another file in a sample: the rest of the line is its path.
const NEXT_FILE: &str = "=> ";

/// The places that a rule finds in one file, or in several that one text holds, as `line`.
fn lines_found(check: Check, path: &str, text: &str) -> Vec<usize> {
    let mut files = text.split(NEXT_FILE);
    let mut sources = vec![Source::new(path, files.next().unwrap_or_default())];
    for file in files {
        let (path, text) = file.split_once('\n').unwrap_or((file, ""));
        sources.push(Source::new(path, text));
    }
    check(&sources).iter().map(|breach| breach.line).collect()
}

#[test]
fn each_rule_fails_on_a_bad_sample_and_passes_a_good_one() {
    let many = |count: usize, line: &str| line.repeat(count);
    let long_function = format!("fn f() {{\n{}}}\n", many(FUNCTION_LINES_MAX, "    g();\n"));
    let rather_long_function = format!("fn f() {{\n{}}}\n", many(70, "    g();\n"));
    let short_functions = |count: usize| {
        (0..count)
            .map(|n| format!("fn g{n}() {{}}\n"))
            .collect::<String>()
    };
    let host = format!("see {}{}\n", REGISTRIES[0].0, REGISTRIES[0].1);
    let cases: &[(Check, &str, &str, &[usize])] = &[
        (
            direction,
            "src/plan.rs",
            "use crate::model::X;\nuse crate::run::Y;\n",
            &[2],
        ),
        (
            direction,
            "src/plan/send.rs",
            "use crate::{model::{A, store}, store::X};\n",
            &[1],
        ),
        (
            direction,
            "src/plan/send.rs",
            "fn f() { super::super::cli::g() }\n",
            &[1],
        ),
        (direction, "src/plan/send.rs", "use super::cli;\n", &[]),
        (
            direction,
            "src/store.rs",
            "use crate::config::Config;\n",
            &[1],
        ),
        (
            direction,
            "src/run.rs",
            "use crate::config::Config;\nuse crate::cli;\n",
            &[2],
        ),
        (
            direction,
            "src/model.rs",
            "// crate::run\nconst X: &str = \"crate::run\";\n",
            &[],
        ),
        (
            direction,
            "src/model.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::run::X;\n}\n",
            &[],
        ),
        (direction, "src/attic.rs", "", &[1]),
        (
            direction,
            "src/state/journal.rs",
            "use crate::zfs::Zfs;\nuse crate::run::RunError;\n",
            &[1, 2],
        ),
        (
            direction,
            "src/catalog/usable.rs",
            "use crate::state::StateError;\nuse crate::run::RunError;\n",
            &[2],
        ),
        (
            direction,
            "src/main.rs",
            "fn main() { zfs_backup::cli::run(); zfs_backup::run::x(); }\n",
            &[1],
        ),
        (direction, "src/lib.rs", "use crate::run::X;\n", &[]),
        (
            subrooms,
            "src/run/commit/put.rs",
            "use crate::run::RunError;\nuse crate::run::backup::X;\n\
             => src/run.rs\npub use error::RunError;\n\
             => src/run/error.rs\n\
             => src/run/backup.rs\nuse crate::run::commit::put::Y;\n",
            &[2],
        ),
        (
            subrooms,
            "src/run/commit/put.rs",
            "fn f() { super::super::pool::pins::pin() }\n=> src/run/pool/pins.rs\n",
            &[1],
        ),
        (
            subrooms,
            "src/run/backup/put.rs",
            "use crate::run::commit::put::X;\nuse super::attempt;\n\
             => src/run/commit/put.rs\n=> src/run/backup/attempt.rs\n",
            &[],
        ),
        (
            circles,
            "src/plan/a.rs",
            "use super::b::{self, X};\n=> src/plan/b.rs\nfn f() { crate::plan::a::g() }\n",
            &[1],
        ),
        // Through a third file, and through a name that the head passes on.
        (
            circles,
            "src/plan/a.rs",
            "\nuse super::B;\n=> src/plan.rs\npub use b::B;\n\
             => src/plan/b.rs\nuse super::c;\n=> src/plan/c.rs\nuse crate::plan::{a::X};\n",
            &[2],
        ),
        // A head and its parts, and tests.
        (
            circles,
            "src/plan/a.rs",
            "use super::b;\n=> src/plan.rs\nuse a::X;\n\
             => src/plan/b.rs\nuse super::Y;\n#[cfg(test)]\nmod tests {\n    use super::super::a;\n}\n",
            &[],
        ),
        (async_rooms, "src/plan.rs", "async fn f() {}\n", &[1]),
        (
            async_rooms,
            "src/zfs/fake.rs",
            "fn f() {\n    x.await;\n}\n",
            &[2],
        ),
        (async_rooms, "src/stream.rs", "use tokio::fs;\n", &[1]),
        (
            async_rooms,
            "src/state/journal.rs",
            "async fn f() {}\n",
            &[1],
        ),
        (async_rooms, "src/catalog.rs", "async fn f() {}\n", &[]),
        (
            async_rooms,
            "src/store/s3.rs",
            "async fn f() { tokio::x().await }\n",
            &[],
        ),
        (
            async_rooms,
            "src/plan.rs",
            "// tokio::x().await\nfn await_hold() {}\n",
            &[],
        ),
        (
            unsafe_files,
            "src/store.rs",
            "fn f() { unsafe { g() } }\n",
            &[1],
        ),
        (
            unsafe_files,
            "src/zfs/core.rs",
            "fn f() {\n    unsafe { g() }\n}\n",
            &[2],
        ),
        (
            unsafe_files,
            "src/zfs/core.rs",
            "fn f() {\n    // SAFETY: g is\n    // fine.\n    let x =\n        unsafe { g() };\n}\n",
            &[],
        ),
        (
            unsafe_files,
            "src/zfs/core.rs",
            "fn f() {\n    // SAFETY: fine.\n    a();\n    unsafe { g() }\n}\n",
            &[4],
        ),
        (
            unsafe_files,
            "src/zfs/core.rs",
            "// Sends.\nunsafe impl Send for X {}\n",
            &[2],
        ),
        (
            unsafe_files,
            "src/zfs/core.rs",
            "fn f(g: unsafe fn()) {}\n",
            &[],
        ),
        (
            unsafe_files,
            "src/zfs/sys.rs",
            "fn f() { unsafe { g() } }\n",
            &[],
        ),
        (
            file_lines,
            "src/plan.rs",
            &many(FILE_LINES_MAX + 1, "// x\n"),
            &[FILE_LINES_MAX + 1; 2],
        ),
        (file_lines, "src/plan.rs", &many(401, "// x\n"), &[401]),
        (
            file_lines,
            "tests/x.rs",
            &many(FILE_LINES_WITH_TESTS_MAX + 1, "// x\n"),
            &[FILE_LINES_WITH_TESTS_MAX + 1],
        ),
        (
            file_lines,
            "tests/x.rs",
            &many(FILE_LINES_WITH_TESTS_MAX, "// x\n"),
            &[],
        ),
        (file_lines, "src/plan.rs", &many(400, "// x\n"), &[]),
        (
            file_lines,
            "src/zfs/sys.rs",
            &many(FILE_LINES_MAX + 1, "// x\n"),
            &[],
        ),
        (
            function_lines,
            "src/plan.rs",
            &(long_function + &short_functions(199)),
            &[1],
        ),
        (
            function_lines,
            "src/plan.rs",
            &format!("{rather_long_function}{}", short_functions(98)),
            &[1],
        ),
        (
            function_lines,
            "src/plan.rs",
            &format!("{rather_long_function}{}", short_functions(99)),
            &[],
        ),
        (
            function_lines,
            "src/plan.rs",
            &format!("impl X {{\n{rather_long_function}}}"),
            &[2],
        ),
        (
            refusal_branches,
            "src/cli.rs",
            "fn f() {\n    matches!(e, RunError::Refused { .. });\n}\n",
            &[2],
        ),
        (
            refusal_branches,
            "src/run/error.rs",
            "fn f() {\n    matches!(e, RunError::Refused { .. });\n}\n",
            &[],
        ),
        (
            panics,
            "src/plan.rs",
            "fn f() {\n    x.unwrap();\n}\n",
            &[2],
        ),
        (
            panics,
            "src/plan.rs",
            "fn f() {\n    x.expect(\"\");\n}\n",
            &[2],
        ),
        (
            panics,
            "src/plan.rs",
            "fn f() {\n    x.expect(\"proved above\");\n}\n",
            &[2],
        ),
        (
            panics,
            "src/plan.rs",
            &format!(
                "fn f() {{ x.expect(\"proved above\") }}\n{}",
                many(200, "\n")
            ),
            &[],
        ),
        (
            panics,
            "src/plan.rs",
            "#[cfg(test)]\nmod tests {\n    fn f() { x.unwrap() }\n}\n",
            &[],
        ),
        (
            panics,
            "src/plan.rs",
            "#[cfg(not(test))]\nmod x {\n    fn f() { x.unwrap() }\n}\n",
            &[3],
        ),
        (
            panics,
            "src/plan.rs",
            "/// `x.unwrap()`\nfn f() { x.unwrap_or(1); }\n",
            &[],
        ),
        (file_docs, "src/plan.rs", "fn f() {}\n", &[1]),
        (file_docs, "tests/x.rs", "// x\nfn f() {}\n", &[1]),
        (file_docs, "src/plan.rs", "//! Plans.\n", &[]),
        (registry_names, "README.md", &format!("a\n{host}"), &[2]),
        (
            registry_names,
            "src/plan.rs",
            "// crates, io and the like\n",
            &[],
        ),
        (
            comment_openings,
            "src/plan.rs",
            "//! Plans.\n\n/// What is kept.\nfn f() {\n    // It holds.\n    g();\n}\n",
            &[3, 5],
        ),
        (
            comment_openings,
            "src/plan.rs",
            "//! This\n/// None, of two.\n/// It is fine here.\nfn f() {}\n// This is it.\n",
            &[1, 2, 5],
        ),
        (
            comment_openings,
            "src/plan.rs",
            "/// Keeps a backup.\n/// It stays whole.\n///\n/// That is all.\nfn f() {}\n",
            &[],
        ),
        (
            comment_openings,
            "src/plan.rs",
            "/// `None` without a backup.\nfn f() {}\n// This host keeps it.\n\n//\n",
            &[],
        ),
        (
            comment_openings,
            "src/plan.rs",
            &("// It.\n\n".to_owned() + &many(48, "// x\n\n")),
            &[1],
        ),
        (
            comment_openings,
            "src/plan.rs",
            &("// It.\n\n".to_owned() + &many(49, "// x\n\n")),
            &[],
        ),
        (comment_openings, "tests/x.rs", "// It is a test.\n", &[]),
        (
            unquoted_commands,
            "src/plan.rs",
            "fn f() {\n    g(\"`zfs destroy {name}`\");\n    g(\"x: zfs allow -u {uid} {}\");\n}\n",
            &[2, 3],
        ),
        (
            unquoted_commands,
            "src/plan.rs",
            "fn f() { g(\"run zfs destroy {quoted}; {name}\", \"zfs-backup forget {id}\", \"zfs {x}\"); }\n",
            &[],
        ),
    ];
    for (check, path, text, expected) in cases {
        let start: String = text.chars().take(80).collect();
        assert_eq!(
            lines_found(*check, path, text),
            *expected,
            "{path}: {start}"
        );
    }
    for (rule, check) in RULES {
        let fails = cases
            .iter()
            .any(|(other, .., lines)| std::ptr::fn_addr_eq(*check, *other) && !lines.is_empty());
        assert!(fails, "no bad sample for: {rule}");
    }
}

#[test]
fn files_of_tests_may_unwrap() {
    let sources = [
        Source::new("src/store.rs", "#[cfg(test)]\nmod contract;\nmod key;\n"),
        Source::new("src/store/contract.rs", "fn f() { x.unwrap() }\n"),
        Source::new("src/store/key.rs", "fn f() { x.unwrap() }\n"),
    ];
    let paths: Vec<String> = panics(&sources)
        .into_iter()
        .map(|breach| breach.path)
        .collect();
    assert_eq!(paths, ["src/store/key.rs"]);
}

/// The room, or the folder inside a room, that stands before one that it uses.
fn out_of_order(rooms: &[(&str, &[&str])]) -> Option<String> {
    for (index, (room, used)) in rooms.iter().enumerate() {
        let before = &rooms[..index];
        let late = used
            .iter()
            .find(|used| !before.iter().any(|(name, _)| name == *used));
        if let Some(late) = late {
            return Some(format!("{room} stands before {late}"));
        }
    }
    None
}

#[test]
fn rooms_and_folders_stand_after_those_that_they_use() {
    assert_eq!(out_of_order(ROOMS), None);
    for (room, folders) in SUBROOMS {
        assert_eq!(out_of_order(folders), None, "{room}");
    }
    let wrong: &[(&str, &[&str])] = &[("plan", &["model"]), ("model", &[])];
    assert_eq!(
        out_of_order(wrong).as_deref(),
        Some("plan stands before model")
    );
}

#[test]
fn the_map_in_lib_rs_lists_the_rooms_in_order() {
    let sources = repository();
    let lib = sources
        .iter()
        .find(|source| source.path == "src/lib.rs")
        .expect("lib.rs is in the repository");
    let map = lib.text.lines().skip_while(|line| *line != "//! # The map");
    let map = map.skip_while(|line| *line != "//! ```text").skip(1);
    let named: Vec<&str> = map
        .take_while(|line| *line != "//! ```")
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    let rooms: Vec<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    assert_eq!(named, rooms[..rooms.len() - 1], "all but main");
}
