//! Checks of the tree itself: who may depend on whom, what pure code may not touch, where unsafe
//! code lives, how long a file may be, how it may be called.
//!
//! The checker reads the text of every source file, without comments and strings; code within
//! `#[cfg(test)]` modules may depend on what it likes. The last tests show that each check can fail.

use std::path::{Path, PathBuf};

/// Every module of `src/` and the modules that it may use. One way: a line names only what stands
/// above it, but for `cluster` and `membership`, which describe each other, and `agent`.
const MAY_USE: &[(&str, &[&str])] = &[
    ("id", &[]),
    ("boot_time", &[]),
    ("drop_reason", &[]),
    ("rate", &[]),
    ("unlock_key", &[]),
    ("file_lock", &[]),
    ("cluster", &["id", "membership"]),
    ("membership", &["id", "cluster"]),
    ("wire", &["id", "boot_time", "drop_reason"]),
    ("sa", &["id", "boot_time", "drop_reason", "wire"]),
    ("forward", &["id", "boot_time", "drop_reason", "wire"]),
    ("datapath", &["id", "boot_time", "drop_reason", "rate", "wire", "sa", "forward"]),
    ("negotiate", &["id", "boot_time", "cluster", "membership", "sa"]),
    // The header in front of a TAP's frames is a wire format.
    ("io", &["id", "boot_time", "drop_reason", "wire"]),
    ("worker", &["id", "boot_time", "drop_reason", "wire", "sa", "forward", "datapath", "io"]),
    // It reads the clock by itself: what is recorded is dated.
    ("events", &["id", "boot_time", "cluster", "sa", "io"]),
    // The suite is a word of the key exchange, of the configuration and of `overlayd peers`.
    ("config", &["id", "sa"]),
    (
        "control",
        &[
            "id",
            "boot_time",
            "rate",
            "unlock_key",
            "file_lock",
            "cluster",
            "membership",
            "sa",
            "negotiate",
            "io",
            "events",
        ],
    ),
    ("api", &["id", "drop_reason", "rate", "unlock_key", "file_lock", "cluster", "sa", "events"]),
    ("cli", &["id", "drop_reason", "rate", "unlock_key", "cluster", "sa", "events", "config", "api"]),
    (
        // It builds everything, with the counters of `datapath` in its answers.
        "agent",
        &[
            "id",
            "boot_time",
            "drop_reason",
            "rate",
            "unlock_key",
            "cluster",
            "membership",
            "wire",
            "sa",
            "forward",
            "datapath",
            "negotiate",
            "io",
            "worker",
            "events",
            "config",
            "control",
            "api",
        ],
    ),
    ("bench", &["id", "boot_time", "wire", "sa", "forward", "datapath", "io"]),
    ("lab", &["id", "boot_time", "io"]),
    ("demo", &["id", "boot_time", "drop_reason", "cluster", "io", "config", "api", "cli", "lab"]),
];

/// Modules without I/O, clock, randomness, globals and log.
const PURE: &[&str] = &[
    "id",
    "boot_time",
    "drop_reason",
    "rate",
    "unlock_key",
    "cluster",
    "membership",
    "wire",
    "sa",
    "forward",
    "datapath",
    "negotiate",
];

/// What pure modules may not name: a path, or the beginning of one.
const IMPURE: &[&str] = &[
    "std::net::UdpSocket",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::os",
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    // A global; `'static` is none.
    "static",
    "rand::rng",
    "rand::random",
    "rand::rngs::OsRng",
    "rand::rngs::SysRng",
    "tracing",
    "tokio",
    "rustix",
    "libc",
    "socket2",
    "thread_local",
];

/// Names that say nothing. A manager is something here: the node that keeps the cluster's state.
const EMPTY_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "handler", "handlers", "common", "misc"];

/// Generated code may trip lints or not, as its generator likes; an expectation would not hold.
const MAY_ALLOW: &[&str] = &["src/control/rpc/mod.rs"];

const MAX_LINES: usize = 700;
const MAX_CODE_LINES: usize = 400;

#[test]
fn the_tree_keeps_its_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for directory in ["src", "tests", "benches", "fuzz/fuzz_targets", "fuzz/src"] {
        collect(&root.join(directory), &mut files);
    }
    assert!(files.len() > 20, "the tree was not found: {files:?}");
    let files: Vec<_> = files
        .iter()
        .map(|file| {
            let name = file.strip_prefix(root).expect("a file of the tree").to_str().expect("an ASCII name");
            (name, std::fs::read_to_string(file).expect("a readable file"))
        })
        .collect();
    let tests: Vec<_> = files.iter().flat_map(|(name, text)| test_modules(name, text)).collect();
    let found: Vec<_> = files.iter().flat_map(|(name, text)| violations(name, text, &tests)).collect();
    assert!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));
}

#[test]
fn every_module_of_the_library_is_in_the_table_and_the_other_way_round() {
    let lib = include_str!("../src/lib.rs");
    let mut declared: Vec<_> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let mut known: Vec<_> = MAY_USE.iter().map(|(module, _)| *module).collect();
    declared.sort_unstable();
    known.sort_unstable();
    assert_eq!(declared, known);
}

/// A cipher that does nothing stays where it is: behind one switch, which is no feature of the package and
/// off in every build that does not ask for it by name.
#[test]
fn the_null_cipher_is_switched_in_one_place_and_off() {
    const { assert!(overlayd::sa::ENCRYPTS, "tests run in builds that encrypt") };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    let named = files.iter().filter(|file| {
        let text = std::fs::read_to_string(file).expect("a readable file");
        without_comments_and_strings(&text).contains("overlayd_null_aead")
    });
    assert_eq!(named.collect::<Vec<_>>(), [&root.join("src/sa/mod.rs")]);
    for file in ["Cargo.toml", "build.rs", "justfile", ".ci/run"] {
        let text = std::fs::read_to_string(root.join(file)).expect("a readable file");
        let lines: Vec<_> = text.lines().filter(|line| line.contains("overlayd_null_aead")).collect();
        let is_lint = |line: &&str| line.starts_with("unexpected_cfgs = ");
        assert!(lines.iter().all(is_lint) && !text.contains("rustc-cfg"), "{file}: {lines:?}");
    }
    assert!(!root.join(".cargo").exists(), "flags of the compiler would be out of sight there");
}

/// Everything that is wrong with one file, one line each; `tests` are the modules of tests alone.
fn violations(file: &str, text: &str, tests: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut report = |line: usize, what: String| found.push(format!("{file}:{line}: {what}"));
    let stem = Path::new(file).file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        report(1, format!("{stem} is not a noun of the field"));
    }
    let module_path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    let is_test = tests.iter().any(|test| Path::new(module_path).starts_with(test));
    if !is_test && !text.starts_with("//!") && !text.starts_with("#!") {
        report(1, "no module documentation".into());
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        report(MAX_LINES, format!("{lines} lines, more than {MAX_LINES}"));
    }
    let code = without_comments_and_strings(text);
    for (number, line) in numbered(&code) {
        if MAY_ALLOW.contains(&file) {
            continue;
        }
        if line.contains("#[allow(") || line.contains("#![allow(") || line.contains(", allow(") {
            report(number, "allow hides a lint for ever; use #[expect(…, reason = …)]".into());
        }
    }
    let Some(inner) = file.strip_prefix("src/").filter(|_| !is_test) else { return found };
    let code = without_tests(&code);
    let code_lines = code.lines().filter(|line| !line.trim().is_empty()).count();
    if code_lines > MAX_CODE_LINES {
        report(MAX_CODE_LINES, format!("{code_lines} lines of code, more than {MAX_CODE_LINES}"));
    }
    let module = inner.split(['/', '.']).next().unwrap_or_default();
    let depth = inner.split('/').count() - usize::from(stem == "mod");
    for (line, path) in paths(code) {
        if path == "unsafe" && module != "io" {
            report(line, "unsafe code outside src/io".into());
        }
        if PURE.contains(&module) && IMPURE.iter().any(|impure| begins(&path, impure)) {
            report(line, format!("the pure module {module} names {path}"));
        }
        if let Some(used) = used_module(&path, depth)
            && used != module
            && !["lib", "main"].contains(&module)
            && let Err(why) = may_use(module, used)
        {
            report(line, why);
        }
    }
    found.dedup();
    found
}

/// The module of the library that a path leads to, from a file `depth` modules below the root.
fn used_module(path: &str, depth: usize) -> Option<&str> {
    let mut segments = path.split("::");
    if path.starts_with("crate::") {
        return segments.nth(1);
    }
    let supers = path.split("::").take_while(|segment| *segment == "super").count();
    if supers >= depth { segments.nth(supers) } else { None }
}

fn may_use(module: &str, used: &str) -> Result<(), String> {
    match MAY_USE.iter().find(|(name, _)| *name == module) {
        None => Err(format!("module {module} is not in the table of tests/architecture.rs")),
        Some((_, allowed)) if allowed.contains(&used) => Ok(()),
        Some(_) => Err(format!("{module} may not use {used}")),
    }
}

fn begins(path: &str, beginning: &str) -> bool {
    path.strip_prefix(beginning).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Cuts the code at its first `#[cfg(test)]` module with a body.
fn without_tests(code: &str) -> &str {
    let body = test_declarations(code).find(|(_, declaration)| declaration.ends_with('{'));
    body.map_or(code, |(start, _)| &code[..start])
}

/// The modules that a file declares for tests alone, as paths of the tree without `.rs`.
fn test_modules(file: &str, text: &str) -> Vec<String> {
    let code = without_comments_and_strings(text);
    let directory = ["/mod.rs", "/lib.rs", "/main.rs", ".rs"].iter().find_map(|end| file.strip_suffix(end));
    test_declarations(&code)
        .filter_map(|(_, declaration)| declaration.strip_suffix(';')?.rsplit(' ').next())
        .map(|module| format!("{}/{module}", directory.unwrap_or(file)))
        .collect()
}

/// Each `#[cfg(test)] mod NAME` with its `;` or `{`, and where it starts.
fn test_declarations(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.match_indices("#[cfg(test)]").filter_map(|(start, attribute)| {
        let behind = &code[start + attribute.len()..];
        let declaration = &behind[..=behind.find(['{', ';'])?];
        declaration.contains("mod ").then_some((start, declaration))
    })
}

fn numbered(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// Every path in the code with its line, groups of `use` written out.
fn paths(code: &str) -> Vec<(usize, String)> {
    let mut scanner = Scanner { rest: code, line: 1, found: Vec::new() };
    while !scanner.rest.is_empty() {
        if scanner.at_identifier() {
            scanner.path(String::new());
        } else {
            scanner.skip();
        }
    }
    scanner.found
}

struct Scanner<'c> {
    rest: &'c str,
    line: usize,
    found: Vec<(usize, String)>,
}

impl<'c> Scanner<'c> {
    fn at_identifier(&self) -> bool {
        self.rest.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }

    fn skip(&mut self) {
        let mut characters = self.rest.chars();
        let first = characters.next();
        self.line += usize::from(first == Some('\n'));
        self.rest = characters.as_str();
        // Numbers have letters and lifetimes are no names: 0xff, 'static.
        if first.is_some_and(|c| c.is_ascii_digit() || c == '\'') {
            self.identifier();
        }
    }

    fn skip_blanks(&mut self) {
        while self.rest.starts_with(char::is_whitespace) {
            self.skip();
        }
    }

    fn identifier(&mut self) -> &'c str {
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (identifier, rest) = self.rest.split_at(end);
        self.rest = rest;
        identifier
    }

    /// One path behind `prefix`, with the groups that it opens.
    fn path(&mut self, mut prefix: String) {
        let line = self.line;
        loop {
            prefix.push_str(self.identifier());
            self.skip_blanks();
            let Some(rest) = self.rest.strip_prefix("::") else { break };
            self.rest = rest;
            self.skip_blanks();
            prefix.push_str("::");
            if self.rest.starts_with('{') {
                return self.group(&prefix);
            }
            if !self.at_identifier() {
                break;
            }
        }
        self.found.push((line, prefix.trim_end_matches("::").to_owned()));
    }

    fn group(&mut self, prefix: &str) {
        self.skip();
        while !self.rest.is_empty() && !self.rest.starts_with('}') {
            if self.at_identifier() {
                self.path(prefix.to_owned());
            } else {
                self.skip();
            }
        }
        self.skip();
    }
}

/// The code with comments gone and strings and characters empty; lines stay where they are.
fn without_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| literal(rest, code.chars().next_back()));
        match skipped {
            Some(length) => {
                code.extend(rest[..length].chars().filter(|&c| c == '\n'));
                rest = &rest[length..];
            }
            None => {
                code.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    code
}

/// The length of the comment that the text begins with.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    text.starts_with("/*").then(|| text.find("*/").map_or(text.len(), |end| end + 2))
}

/// The length of the string or character that the text begins with; `before` is what stands before it.
fn literal(text: &str, before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let raw = text.strip_prefix("br").or_else(|| text.strip_prefix('r')).filter(|_| !in_word);
    if let Some(raw) = raw {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let start = text.len() - raw.len() + hashes + 1;
            return Some(text[start..].find(&close).map_or(text.len(), |end| start + end + close.len()));
        }
    }
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    // What is no character behind the quote is a lifetime.
    let mut inside = text.strip_prefix('\'')?.chars();
    match (inside.next()?, inside.next()?) {
        ('\\', _) => quoted(text, '\''),
        (c, '\'') => Some(c.len_utf8() + 2),
        _ => None,
    }
}

/// The length of the quotation that the text begins with, backslashes observed.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    let inside = text.strip_prefix(quote)?;
    for (index, c) in inside.char_indices() {
        if c == quote && !escaped {
            return Some(index + 2);
        }
        escaped = c == '\\' && !escaped;
    }
    Some(text.len())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    // Benches and fuzz targets may not exist yet; the caller checks that the sources do.
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn a_forbidden_dependency_is_found_however_it_is_written() {
    for code in [
        "use crate::worker::Lane;",
        "use crate::{id::Vni, worker};",
        "use crate::{\n    id::{Vni, Spi},\n    worker::{Lane, Command},\n};",
        "fn f() { crate::worker::spawn(); }",
        "fn f(lane: &crate :: worker::Lane) {}",
        "use super::super::worker::Lane;",
    ] {
        let found = check("src/api/server.rs", code);
        assert!(matches!(&found[..], [one] if one.ends_with("api may not use worker")), "{code}: {found:?}");
    }
    assert_eq!(check("src/api/server.rs", "use crate::{cluster::Node, id};\nuse crate::api::types;"), NONE);
    assert_eq!(check("src/api/server.rs", "use super::types;"), NONE);
    assert_eq!(check("src/api/mod.rs", "use super::worker;"), ["src/api/mod.rs:2: api may not use worker"]);
    assert_eq!(check("src/api/server.rs", "// crate::worker\nconst A: &str = \"crate::worker\";"), NONE);
    assert!(check("src/new_module.rs", "use crate::id::Vni;")[0].contains("not in the table"));
}

#[test]
fn the_line_of_a_violation_is_given() {
    let text = "/* a\nb */ const A: char = '\"';\nconst B: &str = r#\"\n\"#;\n\nuse crate::worker;";
    assert_eq!(check("src/api/mod.rs", text), ["src/api/mod.rs:7: api may not use worker"]);
}

#[test]
fn impure_names_are_found_in_pure_modules_only() {
    for code in [
        "use std::time::{Duration, Instant};",
        "use std::{fs, fmt};",
        "use std::net::UdpSocket;",
        "fn f() { let r = rand::rng(); }",
        "fn f() { tracing::debug!(1); }",
        "static COUNT: AtomicU64 = AtomicU64::new(0);",
    ] {
        let found = check("src/wire/esp.rs", code);
        assert!(matches!(&found[..], [one] if one.contains("pure module wire names")), "{code}: {found:?}");
        assert_eq!(check("src/agent/mod.rs", code), NONE);
    }
    assert_eq!(check("src/wire/esp.rs", "use std::net::IpAddr;\nfn f() -> &'static str {}"), NONE);
}

#[test]
fn unsafe_code_is_found_outside_io() {
    assert_eq!(check("src/wire/esp.rs", "fn f() { unsafe { g() } }").len(), 1);
    assert_eq!(check("src/io/tap.rs", "fn f() { unsafe { g() } }"), NONE);
    assert_eq!(check("src/wire/esp.rs", "// unsafe\nconst UNSAFE: &str = \"unsafe \\\" unsafe\";"), NONE);
}

#[test]
fn test_modules_may_use_what_they_like_but_code_before_them_may_not() {
    let tests = "#[cfg(test)]\nmod tests {\n    use std::fs;\n    use crate::worker;\n}\n";
    assert_eq!(check("src/wire/esp.rs", tests), NONE);
    assert_eq!(check("src/wire/esp.rs", &format!("use crate::worker;\n{tests}")).len(), 1);
    assert_eq!(check("src/wire/mod.rs", "#[cfg(test)]\nmod tests;\nuse crate::worker;").len(), 1);
    let tests =
        test_modules("src/wire/mod.rs", "#[cfg(test)]\nmod tests;\n#[cfg(test)]\npub(crate) mod bed;");
    assert_eq!(tests, ["src/wire/tests", "src/wire/bed"]);
    for file in ["src/wire/tests.rs", "src/wire/tests/mod.rs", "src/wire/tests/loss.rs", "src/wire/bed.rs"] {
        assert_eq!(violations(file, "use crate::worker;", &tests), NONE);
    }
    assert_eq!(violations("src/wire/bedrock.rs", "//! Doc.\nuse crate::worker;", &tests).len(), 1);
    assert_eq!(test_modules("src/wire/esp.rs", "#[cfg(test)]\nmod tests;"), ["src/wire/esp/tests"]);
}

#[test]
fn allowed_lints_bad_names_missing_documentation_and_long_files_are_found() {
    assert!(check("src/id.rs", "#[allow(dead_code)]\nfn f() {}")[0].contains("#[expect("));
    assert!(check("tests/x.rs", "#![allow(dead_code)]")[0].contains("#[expect("));
    assert!(check("src/id.rs", "#[cfg_attr(test, allow(dead_code))]")[0].contains("#[expect("));
    assert_eq!(check("src/id.rs", "fn f(b: Bucket) { b.allow(1); }"), NONE);
    assert!(check("src/wire/utils.rs", "")[0].contains("not a noun"));
    assert_eq!(violations("src/id.rs", "fn f() {}\n", &[]), ["src/id.rs:1: no module documentation"]);
    let long = "fn f() {}\n".repeat(MAX_CODE_LINES + 1);
    assert!(check("src/id.rs", &long)[0].contains("401 lines of code"));
    let comments = "// why\n".repeat(MAX_LINES);
    assert!(check("src/id.rs", &comments)[0].contains("701 lines, more than"));
    let tested = format!("#[cfg(test)]\nmod tests {{\n{long}}}\n");
    assert_eq!(check("src/id.rs", &tested), NONE);
}

#[test]
fn the_table_points_one_way() {
    for (index, (module, used)) in MAY_USE.iter().enumerate() {
        for used in *used {
            let above = MAY_USE[..index].iter().any(|(name, _)| name == used);
            assert!(above || (*module, *used) == ("cluster", "membership"), "{module} uses {used}");
        }
    }
}

const NONE: [&str; 0] = [];

fn check(file: &str, code: &str) -> Vec<String> {
    violations(file, &format!("//! Doc.\n{code}"), &[])
}
