//! All rows, and what is written about them.

use std::collections::BTreeMap;
use std::sync::Mutex;

use mitosis_lab::Daemon;
use serde_json::{Value, json};

use crate::course;
use crate::rows::{ROWS, Row};
use crate::support::*;

/// Labs at work at the same time.
const LABS: usize = 2;

const RESULT: &str = "bench/results/runtimes.json";
const DOC: &str = "docs/runtimes.md";
const BEGIN: &str = "<!-- the table begins -->\n";
const END: &str = "<!-- the table ends -->\n";

/// Ends all children and removes all seeds.
pub fn clean(daemons: &[Daemon<'_>]) {
    for daemon in daemons {
        end_children(daemon);
        for seed in daemon.mitosis_json(&["seed", "ls"]).unwrap().as_array().unwrap() {
            daemon.mitosis(&["seed", "rm", seed["seed"].as_str().unwrap()]).unwrap();
        }
    }
}

/// What became of one stage, against what the row says.
fn judge(row: &Row, stage: &str, seen: Result<Value, String>) -> Result<Value, String> {
    match (seen, row.refused) {
        (Ok(figures), None) => Ok(figures),
        (Err(said), Some(refused)) if said == refused => Ok(json!({ "refused": said })),
        (Ok(_), Some(refused)) => Err(format!("{stage}: forked, and the row says: {refused}")),
        (Err(said), _) => Err(format!("{stage}: {said}")),
    }
}

fn one(lab: &mitosis_lab::Lab, daemons: &[Daemon<'_>], row: &Row) -> Result<Value, String> {
    let version = row.version()?;
    let [idle, load] = course::run(lab, daemons, row)?;
    let (idle, load) = (judge(row, "idle", idle), judge(row, "under load", load));
    match (idle, load) {
        (Ok(idle), Ok(load)) => {
            Ok(json!({ "runtime": row.title, "version": version, "idle": idle, "load": load }))
        }
        (idle, load) => {
            Err([idle.err(), load.err()].into_iter().flatten().collect::<Vec<_>>().join("\n"))
        }
    }
}

type Seen = BTreeMap<usize, Result<Value, String>>;

fn work(queue: &Mutex<Vec<usize>>, seen: &Mutex<Seen>) {
    let lab = lab(3);
    let daemons: Vec<Daemon<'_>> = (0..3).map(|index| daemon(&lab, index)).collect();
    loop {
        let Some(index) = queue.lock().unwrap().pop() else { return };
        let said = one(&lab, &daemons, &ROWS[index]);
        clean(&daemons);
        if let Err(error) = &said {
            eprintln!("{}: {error}", ROWS[index].name);
        }
        seen.lock().unwrap().insert(index, said);
    }
}

#[test]
fn every_runtime_answers_from_its_children() {
    let wanted = std::env::var("MITOSIS_RUNTIMES").ok();
    let wanted: Option<Vec<&str>> = wanted.as_deref().map(|names| names.split(',').collect());
    let mut queue: Vec<usize> = (0..ROWS.len()).collect();
    queue.retain(|i| wanted.as_ref().is_none_or(|wanted| wanted.contains(&ROWS[*i].name)));
    assert!(!queue.is_empty(), "no row of that name");
    queue.reverse();
    let (queue, seen) = (Mutex::new(queue), Mutex::new(Seen::new()));
    std::thread::scope(|scope| {
        for _ in 0..LABS {
            scope.spawn(|| work(&queue, &seen));
        }
    });
    let seen = seen.into_inner().unwrap();
    let failed: Vec<String> = seen
        .iter()
        .filter_map(|(i, said)| Some(format!("{}: {}", ROWS[*i].name, said.as_ref().err()?)))
        .collect();
    assert!(failed.is_empty(), "{} of {} rows:\n{}", failed.len(), seen.len(), failed.join("\n"));
    if std::env::var_os("MITOSIS_RUNTIMES_KEEP").is_some() {
        keep(seen.into_iter().map(|(index, said)| (index, said.unwrap())).collect());
    }
}

/// Writes the result, and the table that is made of it. Rows that were not run stay as they were seen on
/// the same machine.
fn keep(seen: BTreeMap<usize, Value>) {
    let machine = serde_json::to_string(&mitosis_bench::Machine::this()).unwrap();
    let kept: Value =
        serde_json::from_str(&std::fs::read_to_string(root().join(RESULT)).unwrap()).unwrap();
    if seen.len() < ROWS.len() {
        let now: Value = serde_json::from_str(&machine).unwrap();
        let same = |key: &str| kept["machine"][key] == now[key];
        let keys = ["cpu", "cores", "kernel", "version"];
        assert!(keys.into_iter().all(same), "rows of another machine: run all of them");
    }
    let row = |index: usize| {
        let title = ROWS[index].title;
        let before = || kept["rows"].as_array().unwrap().iter().find(|r| r["runtime"] == title);
        seen.get(&index).or_else(before).unwrap_or_else(|| panic!("{title}: not run yet")).clone()
    };
    let rows: Vec<Value> = (0..ROWS.len()).map(row).collect();
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    let text = format!("{{\"machine\":{machine},\n\"rows\":[\n{}\n]}}\n", lines.join(",\n"));
    std::fs::write(root().join(RESULT), &text).unwrap();
    let doc = std::fs::read_to_string(root().join(DOC)).unwrap();
    let (before, rest) = doc.split_once(BEGIN).unwrap();
    let after = rest.split_once(END).unwrap().1;
    let table = table(&serde_json::from_str(&text).unwrap());
    std::fs::write(root().join(DOC), format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
}

fn table(result: &Value) -> String {
    let mut text = String::from(
        "| runtime | version | threads | idle | under load |\n|---|---|---|---|---|\n",
    );
    for row in result["rows"].as_array().unwrap() {
        let cell = |stage: &str| {
            let refused = row[stage]["refused"].as_str();
            refused.map_or_else(|| "works".to_owned(), |said| format!("`{said}`"))
        };
        let word = |key: &str| row[key].as_str().unwrap();
        text += &format!(
            "| {} | {} | {} | {} | {} |\n",
            word("runtime"),
            word("version"),
            row["idle"]["threads"],
            cell("idle"),
            cell("load"),
        );
    }
    let machine = &result["machine"];
    text + &format!(
        "\nLinux {}, {} cores of {}, mitosis {}.\n",
        machine["kernel"].as_str().unwrap(),
        machine["cores"],
        machine["cpu"].as_str().unwrap(),
        machine["version"].as_str().unwrap(),
    )
}

#[test]
fn the_table_is_the_kept_result_and_has_every_row() {
    let result = std::fs::read_to_string(root().join(RESULT)).unwrap();
    let result: Value = serde_json::from_str(&result).unwrap();
    let titles: Vec<&str> = ROWS.iter().map(|row| row.title).collect();
    let kept = result["rows"].as_array().unwrap().iter();
    let kept: Vec<&str> = kept.map(|row| row["runtime"].as_str().unwrap()).collect();
    assert_eq!(kept, titles, "run them with MITOSIS_RUNTIMES_KEEP=1");
    let doc = std::fs::read_to_string(root().join(DOC)).unwrap();
    assert!(doc.contains(&format!("{BEGIN}{}{END}", table(&result))), "{DOC} has another table");
}
