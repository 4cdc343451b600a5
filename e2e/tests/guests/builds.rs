//! Images from recipes: built in machines, step by step, from a cache where a step was done before; and that nothing is
//! left of a build but its image, however it ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::{Daemon, Finished, Settings, Testbed, truth, wait_for};

/// A directory to build from.
fn context(daemon: &Daemon, files: &[(&str, &str)]) -> PathBuf {
    let directory = daemon.scratch().join("context");
    for (name, content) in files {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("make directories");
        std::fs::write(path, content).expect("write");
    }
    directory
}

fn build(daemon: &Daemon, directory: &Path, arguments: &[&str]) -> Finished {
    let build = daemon.banger(["image", "build", "--name", "app"]);
    build.args(arguments).args([directory]).run()
}

fn says(finished: &Finished, words: &[&str]) {
    for word in words {
        assert!(finished.err().contains(word), "{word:?} is not in {finished}");
    }
}

const STAGES: &str = r#"
FROM busybox AS maker
ARG WHO=world
ENV GREETING="hello $WHO"
WORKDIR /srv/app
RUN echo "$GREETING" > greeting && mkdir /out && ln -s greeting link
COPY --chown=nobody a.txt sub ./
RUN --mount=type=secret,id=token,required=true test "$(cat /run/secrets/token)" = geheim
RUN test ! -s /run/secrets/token

FROM busybox
COPY --from=maker /srv/app /app
COPY <<END /etc/app.conf
from the recipe
END
ADD packed.tar /unpacked/
LABEL org.example.kind="test"
USER nobody
WORKDIR /app
ENTRYPOINT ["/bin/busybox", "cat"]
CMD ["greeting"]
"#;

#[test]
fn stages_files_secrets_and_what_the_image_says_of_itself() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    let directory = context(
        &daemon,
        &[
            ("Dockerfile", STAGES),
            ("a.txt", "a\n"),
            ("sub/b.txt", "b\n"),
            ("packed/inside/c.txt", "c\n"),
            (".dockerignore", "packed\n"),
        ],
    );
    let token = daemon.scratch().join("token");
    std::fs::write(&token, "geheim").expect("write");
    let packed = std::process::Command::new("tar")
        .args(["-C", "packed", "-cf", "packed.tar", "inside"])
        .current_dir(&directory)
        .status();
    assert!(packed.expect("run tar").success());
    let secret = format!("id=token,src={}", token.display());

    // What it needs is said before anything starts.
    let refused = build(&daemon, &directory, &[]).expect(2);
    says(&refused, &["the secret \"token\""]);

    let built = build(
        &daemon,
        &directory,
        &["--secret", &secret, "--build-arg", "WHO=you"],
    )
    .expect(0);
    assert_eq!(built.out(), "app");
    says(&built, &["RUN echo", "built app"]);
    assert!(!built.err().contains("cached"), "{built}");
    assert_eq!(daemon.banger(["run", "app", "--rm"]).ok(), "hello you");
    let look = "id -un; pwd; cat a.txt b.txt link /etc/app.conf /unpacked/inside/c.txt";
    let run = daemon.banger(["run", "app", "--rm", "--entrypoint", "/bin/busybox", "--"]);
    let seen = run.args(["sh", "-c", look]).ok();
    assert_eq!(seen, "nobody\n/app\na\nb\nhello you\nfrom the recipe\nc");
    let found = daemon.banger(["image", "find", "--label", "org.example.kind=test", "-q"]);
    assert_eq!(found.ok().lines().count(), 1);

    // Again: from the cache, without a machine, and the same image.
    let again = build(
        &daemon,
        &directory,
        &["--secret", &secret, "--build-arg", "WHO=you"],
    )
    .expect(0);
    says(&again, &["cached: RUN echo", "it gets the name"]);
    assert!(again.took < Duration::from_secs(10), "{again}");

    // A file that changed is copied anew, and what comes after it; what comes before is not.
    std::fs::write(directory.join("a.txt"), "changed\n").expect("write");
    let third = build(
        &daemon,
        &directory,
        &["--secret", &secret, "--build-arg", "WHO=you"],
    )
    .expect(0);
    says(&third, &["cached: RUN echo", ": COPY --chown=nobody"]);
    assert!(!third.err().contains("cached: COPY --chown"), "{third}");
    let run = daemon.banger(["run", "app", "--rm", "--", "a.txt"]);
    assert_eq!(run.ok(), "changed");

    // Neither name, resolver, agent, nor secret of the build is in the image.
    let tar = |image: &str| {
        let path = daemon.scratch().join(format!("{image}.tar"));
        let export = daemon.banger(["image", "export", "--format", "tar", image]);
        export.args([&path]).ok();
        path
    };
    let (app, base) = (tar("app"), tar("busybox"));
    for file in ["etc/hosts", "etc/resolv.conf", "etc/hostname"] {
        let of = |archive: &Path| {
            let read = e2e::Banger::new("tar")
                .args(["-xOf"])
                .args([archive])
                .args([file])
                .run();
            (read.code(), read.stdout)
        };
        assert_eq!(of(&app), of(&base), "{file}");
    }
    let bytes = std::fs::read(&app).expect("the archive");
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("from the recipe"), "files are in it");
    for text in ["geheim", "banger-agent", "banger-etc"] {
        assert!(!has(text), "{text} is in the image");
    }
    let rootfs = daemon.state().join("images");
    for image in std::fs::read_dir(rootfs).expect("images").flatten() {
        let bytes = std::fs::read(image.path().join("rootfs.ext4")).expect("the image");
        assert!(
            !bytes.windows(6).any(|window| window == b"geheim"),
            "the secret is on the disk of {image:?}"
        );
    }
    daemon.banger(["image", "rm", "app"]).ok();
    before.assert_nothing_left(&daemon);
    truth::assert_true(&daemon);
    daemon.finish();
}

#[test]
fn the_recipe_of_our_own() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let recipe = r#"
from = "busybox"
[args]
WORD = "default"
[[step]]
env = { SAID = "${WORD}" }
[[step]]
workdir = "/work"
[[step]]
copy = "file"
to = "/work/"
mode = "0600"
[[step]]
run = "echo $SAID > said; stat -c %a file >> said"
[config]
cmd = ["/bin/busybox", "cat", "/work/said"]
"#;
    let directory = context(&daemon, &[("Banger.toml", recipe), ("file", "content")]);
    build(&daemon, &directory, &["--build-arg", "WORD=given"]).expect(0);
    assert_eq!(daemon.banger(["run", "app", "--rm"]).ok(), "given\n600");
    daemon.finish();
}

#[test]
fn what_is_wrong_is_said_with_its_line_before_anything_starts() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    let wrong =
        "FROM busybox\nRUN --mount=type=cache,target=/x ls\nHEALTHCHECK CMD x\nADD http://x/y /z\nNONSENSE\n";
    let directory = context(
        &daemon,
        &[
            ("Dockerfile", wrong),
            ("scratch", "FROM scratch\nCOPY a /\n"),
            ("escape", "FROM busybox\nCOPY ../secret /\n"),
            ("nothing", "FROM busybox\nCOPY absent /\n"),
            ("nobase", "FROM does-not-exist\nRUN true\n"),
        ],
    );
    let refused = build(&daemon, &directory, &[]).expect(2);
    says(
        &refused,
        &[
            "Dockerfile:2",
            "Dockerfile:3",
            "Dockerfile:4",
            "Dockerfile:5",
            "NONSENSE",
        ],
    );
    let file = |name: &str| directory.join(name).display().to_string();
    says(
        &build(&daemon, &directory, &["-f", &file("scratch")]).expect(2),
        &["line 1"],
    );
    says(
        &build(&daemon, &directory, &["-f", &file("escape")]).expect(2),
        &["../secret"],
    );
    says(
        &build(&daemon, &directory, &["-f", &file("nothing")]).expect(2),
        &["line 2", "absent"],
    );
    says(
        &build(&daemon, &directory, &["-f", &file("nobase")]).expect(3),
        &["does-not-exist"],
    );
    let unknown = build(
        &daemon,
        &directory,
        &["-f", &file("nothing"), "--build-arg", "X=1"],
    )
    .expect(2);
    says(&unknown, &["X"]);
    let empty = daemon.scratch().join("empty");
    std::fs::create_dir(&empty).expect("make a directory");
    says(&build(&daemon, &empty, &[]).expect(2), &["no recipe"]);
    before.assert_nothing_left(&daemon);
    daemon.finish();
}

#[test]
fn a_step_that_fails_is_said_logged_and_can_be_entered() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    let recipe = "FROM busybox\nRUN echo kept > /kept\nRUN echo to the log; exit 3\n";
    let directory = context(&daemon, &[("Dockerfile", recipe)]);
    let failed = build(&daemon, &directory, &[]).expect(2);
    says(&failed, &["to the log", "line 3", "exit code 3"]);
    before.assert_nothing_left(&daemon);

    // The step before it is in the cache, and on the disk of the machine that is entered.
    let shell = daemon.banger(["image", "build", "--name", "app", "--on-failure", "shell"]);
    let entered = shell
        .args([&directory])
        .input("echo in it; cat /kept\n")
        .run()
        .expect(2);
    assert_eq!(entered.out(), "in it\nkept", "{entered}");
    says(&entered, &["cached: RUN echo kept", "exit code 3"]);
    before.assert_nothing_left(&daemon);

    let operations = daemon.banger(["op", "ls", "--output", "json"]).json();
    let mut kinds = operations.as_array().expect("a list").iter();
    assert!(
        kinds.any(|op| op["kind"] == "image.build" && op["state"] == "failed"),
        "{operations}"
    );
    let last = operations
        .as_array()
        .expect("a list")
        .iter()
        .find(|op| op["kind"] == "image.build");
    let id = last.expect("a build")["id"].as_str().expect("an id").to_owned();
    assert!(daemon.banger(["op", "logs", &id]).ok().contains("to the log"));
    daemon.banger(["op", "logs", "nothing"]).fails(3);
    truth::assert_true(&daemon);
    daemon.finish();
}

#[test]
fn a_build_is_cancelled_anywhere() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    let recipe = "FROM busybox\nRUN echo one\nRUN echo two; sleep 1000\n";
    let directory = context(&daemon, &[("Dockerfile", recipe)]);
    for milliseconds in [30, 300, 1500, 12_000] {
        let build = daemon.banger(["image", "build", "--name", "app", "--no-cache"]);
        let build = build.args([&directory]).spawn();
        std::thread::sleep(Duration::from_millis(milliseconds));
        build.interrupt();
        let finished = build.finish();
        assert_eq!(finished.code(), 130, "after {milliseconds} ms: {finished}");
        // A signal before the command listens ends it at once, and the build goes on: it is cancelled by its name.
        let operations = daemon.banger(["op", "ls", "--output", "json"]).json();
        for op in operations.as_array().expect("a list") {
            if op["kind"] == "image.build" && op["state"] == "running" {
                let id = op["id"].as_str().expect("an id");
                drop(daemon.banger(["op", "cancel", id]).run());
            }
        }
        before.assert_nothing_left(&daemon);
    }
    // Detached, watched, cancelled by its operation.
    let begun = daemon.banger(["image", "build", "--name", "app", "--detach"]);
    let id = begun.args([&directory]).ok();
    let reached = wait_for(Duration::from_secs(120), || {
        let shown = daemon.banger(["op", "show", &id, "--output", "json"]).json();
        shown["message"]
            .as_str()
            .is_some_and(|message| message.contains("RUN echo two"))
            .then_some(())
    });
    reached.expect("the second command");
    daemon.banger(["op", "cancel", &id]).ok();
    before.assert_nothing_left(&daemon);
    truth::assert_true(&daemon);
    daemon.finish();
}

#[test]
fn a_daemon_that_dies_leaves_nothing_of_a_build() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    let recipe = "FROM busybox\nRUN echo one > /one\nRUN echo two; sleep 1000\n";
    let directory = context(&daemon, &[("Dockerfile", recipe)]);
    let begun = daemon.banger(["image", "build", "--name", "app", "--detach"]);
    let id = begun.args([&directory]).ok();
    let reached = wait_for(Duration::from_secs(120), || {
        let shown = daemon.banger(["op", "show", &id, "--output", "json"]).json();
        shown["message"]
            .as_str()
            .is_some_and(|message| message.contains("RUN echo two"))
            .then_some(())
    });
    reached.expect("the second command");
    daemon.kill();
    daemon.launch();
    let gone = wait_for(Duration::from_secs(60), || {
        let machines = daemon.banger(["vm", "ls", "--output", "json"]).json();
        machines.as_array().is_some_and(Vec::is_empty).then_some(())
    });
    gone.expect("the build machine's end");
    let shown = daemon.banger(["op", "show", &id, "--output", "json"]).json();
    assert_eq!(shown["state"], "failed", "{shown}");
    before.assert_nothing_left(&daemon);
    // What was done is in the cache.
    std::fs::write(
        directory.join("Dockerfile"),
        "FROM busybox\nRUN echo one > /one\n",
    )
    .expect("write");
    let built = build(&daemon, &directory, &[]).expect(0);
    says(&built, &["cached: RUN echo one"]);
    assert_eq!(
        daemon.banger(["run", "app", "--rm", "--", "cat", "/one"]).ok(),
        "one"
    );
    truth::assert_true(&daemon);
    daemon.finish();
}
