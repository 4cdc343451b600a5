//! Recipes as people write them, read, settled and shown: every step as written, and what it came to.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use banger_recipe::{Base, Config, Environment, Kind, Recipe, Source, parse};

fn read(name: &str, args: &[(&str, &str)], target: Option<&str>) -> Recipe {
    let path = format!("{}/tests/recipes/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let args = args
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let source = Source {
        name,
        text: &text,
        kind: Kind::of_name(name),
        base: None,
    };
    match parse(&source, &args, target) {
        Ok(recipe) => recipe,
        Err(errors) => panic!("{errors}"),
    }
}

/// The recipe gone through as a build does it.
fn shown(recipe: &Recipe) -> String {
    let mut out = String::new();
    let mut ended: Vec<Environment> = Vec::new();
    for (number, stage) in recipe.stages.iter().enumerate() {
        writeln!(
            out,
            "stage {number} {:?} line {}: {:?}",
            stage.name, stage.line, stage.base
        )
        .unwrap();
        let mut environment = match &stage.base {
            Base::Image(_) | Base::Scratch => Environment::on_image(Config::default()),
            Base::Stage(parent) => Environment::on_stage(ended.get(*parent).unwrap()),
        };
        for step in &stage.steps {
            let resolved = step.resolve(&environment).unwrap();
            writeln!(out, "  {}: {}", step.line, step.text).unwrap();
            writeln!(out, "    {}", serde_json::to_string(&resolved.action).unwrap()).unwrap();
            environment.apply(&resolved);
        }
        ended.push(environment);
    }
    let last = ended.last().unwrap();
    writeln!(
        out,
        "variables {}",
        serde_json::to_string(&last.variables()).unwrap()
    )
    .unwrap();
    writeln!(out, "config {}", serde_json::to_string(last.config()).unwrap()).unwrap();
    out
}

macro_rules! recipes {
    ($($name:ident: $file:literal $args:expr, $target:expr;)*) => {$(
        #[test]
        fn $name() {
            insta::assert_snapshot!(shown(&read($file, $args, $target)));
        }
    )*};
}

recipes! {
    node: "node.Dockerfile" &[("NODE_VERSION", "22")], None;
    node_build: "node.Dockerfile" &[], Some("BUILD");
    python: "python.Dockerfile" &[], None;
    go: "go.Dockerfile" &[("VERSION", "1.2"), ("TARGETARCH", "riscv64"), ("https_proxy", "http://proxy:1")], None;
    nginx: "nginx.Dockerfile" &[], None;
    postgres: "postgres.Dockerfile" &[], None;
    heredoc: "heredoc.Dockerfile" &[("GREETING", "good day")], None;
    rust: "rust.Dockerfile" &[], Some("builder");
    rust_runtime: "rust.Dockerfile" &[], Some("3");
    java: "java.Dockerfile" &[], None;
    php: "php.Dockerfile" &[], None;
    redis: "redis.Dockerfile" &[], None;
    escape: "escape.Dockerfile" &[], None;
    variables: "variables.Dockerfile" &[], None;
    variables_given: "variables.Dockerfile" &[("BASE", "ubuntu"), ("ABC", "given")], None;
    ubuntu: "ubuntu.Dockerfile" &[], None;
    plain: "plain.toml" &[("RELEASE", "13")], None;
}

/// What is wrong with a text, as it is shown.
fn wrong(kind: Kind, text: &str, args: &[(&str, &str)], target: Option<&str>) -> String {
    let args: BTreeMap<String, String> = args
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let name = match kind {
        Kind::Dockerfile => "Dockerfile",
        Kind::Toml => "Banger.toml",
    };
    let source = Source {
        name,
        text,
        kind,
        base: None,
    };
    parse(&source, &args, target).unwrap_err().to_string()
}

#[test]
fn everything_wrong_is_said_at_once() {
    let text = r#"# escape=x
FROM --platform=linux/s390x debian AS 1st
RUN --mount=type=cache,target=/x --mount=type=ssh true
RUN --mount=type=bind,source=.,target=/src \
    --mount=type=tmpfs,target=/t \
    --network=none --security=insecure --what make
RUN --mount=type=secret,id=a/b true
RUN --mount=type=secret,id=a,env=TOKEN true
FROMM debian
COPY only
COPY --from=later /a /b
COPY --from=7 /a /b
COPY --from=${X} /a /b
COPY --chmod=u+x --parents a b
ADD https://example.org/x.tgz git@example.org:a/b /dst/
ADD --from=x a b
ENV A
ENV A=1 B
ENV A="unclosed
LABEL a=${x
ARG 1A
HEALTHCHECK --interval=5m CMD true
ONBUILD RUN true
SHELL /bin/bash
CMD ["a", 1]
WORKDIR
USER ${A/b/c}
RUN []
RUN <<EOF
never closed
"#;
    insta::assert_snapshot!(wrong(
        Kind::Dockerfile,
        text,
        &[("NOPE", "1"), ("HTTP_PROXY", "x")],
        None
    ));
}

#[test]
fn requests_that_do_not_fit() {
    let text = "ARG X\nFROM a AS one\nARG Y=1\nRUN --network=host true\nFROM b\n";
    let mut out = String::new();
    for (args, target) in [
        (&[("Z", "")][..], None),
        (&[], Some("two")),
        (&[], Some("2")),
        (&[], Some("one")),
    ] {
        writeln!(out, "{}\n", wrong(Kind::Dockerfile, text, args, target)).unwrap();
    }
    for text in [
        "",
        "# nothing\n",
        "RUN true\nRUN false\n",
        "FROM ${NOTHING}\n",
        "FROM a b\n",
        "FROM a\nCOPY --from=scratch a b\n",
    ] {
        writeln!(out, "{text:?}\n{}\n", wrong(Kind::Dockerfile, text, &[], None)).unwrap();
    }
    insta::assert_snapshot!(out);
}

#[test]
fn everything_wrong_in_toml_is_said_at_once() {
    let text = r#"from = 12
form = "debian"
[args]
1A = "x"
N = 1
[[step]]
run = ["a", 1]
[[step]]
run = "true"
user = "x"
[[step]]
runn = "true"
[[step]]
run = "true"
secrets = ["a b", { id = "x", mode = 0o77777, path = "y" }]
to = "/x"
[[step]]
copy = "a"
[[step]]
copy = "https://example.org/a"
to = "${x"
mode = 644
[config]
expose = 80
cmds = "x"
"#;
    insta::assert_snapshot!(wrong(Kind::Toml, text, &[("NOPE", "1")], Some("x")));
}

#[test]
fn toml_that_is_none() {
    insta::assert_snapshot!(wrong(
        Kind::Toml,
        "from = \"a\"\n[[step]]\nrun = \nuser = 'x\n",
        &[],
        None
    ));
}

#[test]
fn problems_of_stages_that_are_not_needed_are_nobodys() {
    let text = "FROM a\nONBUILD RUN true\nFROM b\nRUN true\n";
    let source = Source {
        name: "Dockerfile",
        text,
        kind: Kind::Dockerfile,
        base: Some("mine"),
    };
    let recipe = parse(&source, &BTreeMap::new(), None).unwrap();
    assert_eq!(recipe.stages.len(), 1);
    assert_eq!(recipe.stages[0].base, Base::Image("b".to_owned()));
    assert!(parse(&source, &BTreeMap::new(), Some("0")).is_err());
}

#[test]
fn the_base_can_be_another_one() {
    for (kind, text) in [
        (
            Kind::Dockerfile,
            "FROM --platform=linux/amd64 ${WHAT} AS a\nFROM a\n",
        ),
        (Kind::Toml, "[[step]]\nrun = 'true'\n"),
    ] {
        if kind == Kind::Dockerfile && std::env::consts::ARCH != "x86_64" {
            continue;
        }
        let source = Source {
            name: "x",
            text,
            kind,
            base: Some("mine"),
        };
        let recipe = parse(&source, &BTreeMap::new(), None).unwrap();
        assert_eq!(recipe.stages[0].base, Base::Image("mine".to_owned()));
    }
}
