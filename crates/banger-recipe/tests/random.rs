//! Parsers on text that nobody meant: they never panic, never take long, and what they accept can be gone through.
//!
//! Bounded in time by the number of cases; `PROPTEST_CASES` takes another number.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use banger_recipe::{Base, Config, Context, Environment, Kind, Source, StepKind, parse};
use proptest::prelude::*;

/// What a parser may take for any text of these sizes, on a machine that does other things as well.
const LONG: Duration = Duration::from_secs(20);

fn corpus() -> Vec<(Kind, String)> {
    let directory = format!("{}/tests/recipes", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let read = |path: std::path::PathBuf| {
        (
            Kind::of_name(path.to_str().unwrap()),
            std::fs::read_to_string(path).unwrap(),
        )
    };
    files.into_iter().map(read).collect()
}

/// Parses, and goes through what was accepted.
fn go_through(kind: Kind, text: &str) -> bool {
    let begin = Instant::now();
    let source = Source {
        name: "x",
        text,
        kind,
        base: None,
    };
    let accepted = match parse(&source, &BTreeMap::new(), None) {
        Ok(recipe) => {
            assert!(!recipe.stages.is_empty());
            let mut ended: Vec<Environment> = Vec::new();
            for stage in &recipe.stages {
                let mut environment = match &stage.base {
                    Base::Image(image) => {
                        assert!(!image.is_empty());
                        Environment::on_image(Config::default())
                    }
                    Base::Scratch => Environment::on_image(Config::default()),
                    Base::Stage(parent) => Environment::on_stage(ended.get(*parent).unwrap()),
                };
                for step in &stage.steps {
                    assert!(!step.text.contains('\n') && step.line > 0);
                    if let StepKind::Copy(copy) = &step.kind
                        && let banger_recipe::From::Stage(from) = copy.from
                    {
                        assert!(from < ended.len());
                    }
                    if let Ok(resolved) = step.resolve(&environment) {
                        environment.apply(&resolved);
                    }
                }
                ended.push(environment);
            }
            true
        }
        Err(errors) => {
            assert!(!errors.problems.is_empty());
            let lines = u32::try_from(text.matches('\n').count() + 1).unwrap();
            for problem in &errors.problems {
                let place = problem.place;
                assert!(
                    place.is_none_or(|place| (1..=lines).contains(&place.line) && place.column > 0),
                    "{place:?} {problem}"
                );
                assert!(problem.message.len() < 1000, "{problem}");
            }
            false
        }
    };
    assert!(
        begin.elapsed() < LONG,
        "{:?} for {} bytes",
        begin.elapsed(),
        text.len()
    );
    accepted
}

/// Pieces that mean something to a parser.
const PIECES: [&str; 44] = [
    "FROM",
    "FROM a AS b\n",
    "RUN",
    "COPY",
    "ADD",
    "ARG",
    "ENV",
    "LABEL",
    "--from=0",
    "--mount=type=secret,id=x",
    "--chmod=",
    "<<EOF",
    "<<-\"E\"",
    "EOF",
    "\n",
    "\r\n",
    "\\\n",
    "`",
    "\\",
    "\"",
    "'",
    "$",
    "${",
    "}",
    ":-",
    "${A:-",
    "[",
    "]",
    ",",
    "=",
    "#",
    "# escape=`\n",
    " ",
    "\t",
    "\0",
    "é",
    "[[step]]\n",
    "run = ",
    "copy",
    "[config]\n",
    "{",
    "\"\"\"",
    "0o",
    "\u{feff}",
];

#[derive(Debug, Clone)]
enum Change {
    Insert(usize, usize),
    Delete(usize, usize),
    Repeat(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), 0..PIECES.len()).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (any::<usize>(), 1..40_usize).prop_map(|(at, length)| Change::Delete(at, length)),
        (any::<usize>(), 1..80_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
    ]
}

fn mutate(text: &str, changes: &[Change]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for change in changes {
        let place = |at: usize, length: usize| at % (length + 1);
        match change {
            Change::Insert(at, piece) => {
                let at = place(*at, chars.len());
                chars.splice(at..at, PIECES[*piece].chars());
            }
            Change::Delete(at, length) => {
                let at = place(*at, chars.len());
                chars.drain(at..(at + length).min(chars.len()));
            }
            Change::Repeat(at, length) => {
                let at = place(*at, chars.len());
                let again: Vec<char> = chars[at..(at + length).min(chars.len())].to_vec();
                chars.splice(at..at, again);
            }
        }
    }
    chars.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in "(?s).{0,400}") {
        go_through(Kind::Dockerfile, &text);
        go_through(Kind::Toml, &text);
    }

    #[test]
    fn pieces_in_any_order(pieces in prop::collection::vec(0..PIECES.len(), 0..80)) {
        let text: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
        go_through(Kind::Dockerfile, &text);
        go_through(Kind::Toml, &text);
        go_through(Kind::Dockerfile, &format!("FROM a\n{text}"));
    }

    #[test]
    fn recipes_with_changes(which in any::<prop::sample::Index>(), changes in prop::collection::vec(change(), 1..12)) {
        let corpus = corpus();
        let (kind, text) = which.get(&corpus);
        go_through(*kind, &mutate(text, &changes));
    }

    /// What a shell would call quoting: any value gets through double quotes with escapes.
    #[test]
    fn a_quoted_value_comes_out_as_it_was(value in "[^\r\n\0]{0,60}") {
        let mut quoted = String::new();
        for c in value.chars() {
            if matches!(c, '"' | '$' | '\\') {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        let text = format!("FROM scratch\nENV A=\"{quoted}\"\n");
        let source = Source { name: "x", text: &text, kind: Kind::Dockerfile, base: None };
        let recipe = parse(&source, &BTreeMap::new(), None).unwrap();
        let mut environment = Environment::on_image(Config::default());
        let step = recipe.stages[0].steps[0].resolve(&environment).unwrap();
        environment.apply(&step);
        prop_assert_eq!(environment.get("A"), Some(value.as_str()));
    }

    /// Ignore rules and sources are patterns that anybody may write.
    #[test]
    fn patterns(rules in "([a*?!/.\\[\\]\\\\^-]{0,12}\n){0,6}", source in "[a*?/.\\[\\]\\\\^-]{1,20}") {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("a")).unwrap();
        std::fs::write(directory.path().join("a/aa"), "").unwrap();
        std::fs::write(directory.path().join(".dockerignore"), rules).unwrap();
        if let Ok(context) = Context::open(directory.path(), None)
            && let Ok(selection) = context.select(&[source], 1)
        {
            prop_assert!(selection.entries().len() <= 4);
            selection.digest().unwrap();
        }
    }
}

#[test]
fn what_could_blow_up_does_not() {
    let nested = format!("FROM a\nENV A={}{}\n", "${A:-".repeat(50_000), "}".repeat(50_000));
    let doubling = (0..200).fold("FROM a\nENV A=0123456789\n".to_owned(), |text, _| {
        text + "ENV A=$A$A$A$A\nLABEL $A=$A\n"
    });
    let cases = [
        (
            "unclosed documents",
            format!("FROM a\n{}", "RUN <<A\n".repeat(40_000)),
            false,
        ),
        (
            "many documents",
            format!("FROM a\nRUN {}\n", "<<A ".repeat(20_000)),
            false,
        ),
        ("nested", nested, false),
        ("doubling", doubling, true),
        (
            "one long line",
            format!("FROM a\nRUN {}\n", "x ".repeat(400_000)),
            false,
        ),
        (
            "continued",
            format!("FROM a\nRUN {}\n", "\\\n".repeat(30_000)),
            false,
        ),
        ("words", format!("FROM a\nCOPY {}\n", "x ".repeat(100_000)), false),
        (
            "quotes",
            format!("FROM a\nENV {}\n", "A=\"'\\".repeat(40_000)),
            false,
        ),
        (
            "variables",
            format!("FROM a\nENV A={}\n", "$A".repeat(120_000)),
            true,
        ),
        (
            "arguments",
            format!("FROM a\nARG {}\n", "A=$A ".repeat(4_000)),
            true,
        ),
        ("flags", format!("FROM a\nRUN {}\n", "--x ".repeat(60_000)), false),
        ("stages", "FROM a AS a\nCOPY --from=a a b\n".repeat(20_000), false),
        (
            "backslashes",
            format!("FROM a\nRUN {}", "\\".repeat(200_000)),
            true,
        ),
        ("array", format!("FROM a\nCMD {}", "[".repeat(200_000)), true),
    ];
    let wrong: Vec<&str> = cases
        .into_iter()
        .filter(|(_, text, accepted)| go_through(Kind::Dockerfile, text) != *accepted)
        .map(|(what, ..)| what)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    for (what, text) in [
        ("arrays", format!("from = {}", "[".repeat(500_000))),
        ("tables", format!("from = {}", "{a=".repeat(200_000))),
        ("dotted", format!("{}a = 1", "a.".repeat(300_000))),
        ("headers", "[[step]]\n".repeat(100_000)),
        ("too long", "x".repeat(1 << 21)),
    ] {
        assert!(!go_through(Kind::Toml, &text), "{what}");
    }
}
