//! What cannot be forked is refused by name when the seed is made, and the parent is unharmed.

use crate::run::{build, directory, flags, parent, programs};
use crate::support::*;

/// The word of the refusal: `/* Refused: WORD` begins the program.
fn word(name: &str) -> String {
    let path = directory().join("refused").join(format!("{name}.c"));
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().next().unwrap();
    let word = line.strip_prefix("/* Refused: ").and_then(|rest| rest.split([',', '.']).next());
    word.unwrap_or_else(|| panic!("{name}.c does not begin with its word: {line}")).to_owned()
}

#[test]
fn what_cannot_fork_is_refused_by_name() {
    let dir = directory().join("refused");
    let lab = lab(1);
    let a = daemon(&lab, 0);
    for name in programs(&dir) {
        let parent = parent(&lab, &name, &build(&dir, &name));
        assert_eq!(parent.ask("check"), "right", "{name}");
        let before = settled_pids(a.node());
        let (pid, flags) = (parent.pid().to_string(), flags(&dir, &name));
        let args: Vec<&str> =
            ["prepare", &pid].into_iter().chain(flags.iter().map(String::as_str)).collect();
        let output = a.mitosis(&args).unwrap();
        assert_eq!(output.code(), 1, "{name}: {output:?}");
        assert_eq!(output.stderr.trim().lines().count(), 1, "{name}: {}", output.stderr);
        let (said, word) = (output.stderr.to_lowercase(), word(&name).to_lowercase());
        assert!(said.contains(&word), "{name}: `{word}` is not in: {said}");
        same_pids(a.node(), &before);
        assert_eq!(parent.ask("check"), "right", "{name}: afterwards");
    }
}
