//! The table in the documents and the directory of programs name the same things.

use std::collections::BTreeSet;

use crate::run::{directory, names};
use crate::support::root;

/// The words `NAME.c` of the table under a heading of `docs/limits.md`.
fn named_under(heading: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("docs/limits.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let table = section.lines().filter(|line| line.starts_with('|'));
    let words = table.flat_map(|line| line.split(['`', ' ', ',', '|']));
    words.filter_map(|word| word.strip_suffix(".c")).map(str::to_owned).collect()
}

#[test]
fn the_table_of_what_is_carried_names_each_program() {
    let programs: BTreeSet<String> = names(&directory()).into_iter().collect();
    assert_eq!(named_under("Carried"), programs, "left: docs/limits.md, right: tests/conformance");
}

#[test]
fn the_table_of_what_is_refused_names_each_program() {
    let programs: BTreeSet<String> = names(&directory().join("refused")).into_iter().collect();
    assert_eq!(named_under("Refused"), programs, "left: docs/limits.md, right: the directory");
}
