//! `make bench`: what Banger adds to the parts it is made of.
//!
//! Absolute times say something about the machine they were taken on; ratios say something about Banger. So each figure
//! that has a counterpart is taken in pairs, ours and the raw one in turn within one run, and their medians are compared:
//! of the pairs' ratios, or of the differences. The table goes to standard output, all samples go to `target/bench/<date>.json`.
//! What this host or this user cannot have measured is named below the table, with the reason, and in the file.

mod disks;
mod dns;
mod guests;
mod images;
mod network;
mod pairs;
mod raw;
mod report;
mod rows;
mod scale;
mod stream;
mod warm;

use std::time::Duration;

use e2e::{Daemon, Settings, Testbed};

use report::Report;

/// Its name, what it is about, what measures it.
type Group = (&'static str, &'static str, fn(&mut Report, &Daemon));

fn main() {
    // `cargo test --benches` and the lists of test runners call benchmarks too.
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return;
    }
    let Some(bed) = Testbed::find() else {
        std::process::exit(1)
    };
    let config = "[vmm]\nchoice = \"qemu\"\n";
    let daemon = Daemon::start(&bed, Settings::prepared().config(config));
    let mut report = Report::default();

    // All groups, or those named: `cargo bench -p e2e --bench overhead -- start exec`.
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|n| n == name);
    let groups: [Group; 10] = [
        ("idle", "the daemon at rest (30 s)", |report, daemon| {
            rows::idle(report, daemon, "no machine", Duration::from_secs(30));
        }),
        ("short", "short commands", rows::short_commands),
        ("disks", "creating, resetting, deleting machines", disks::overlay),
        (
            "creates",
            "creating many machines at once",
            scale::concurrent_creates,
        ),
        ("start", "start to first exec, in pairs", rows::start),
        ("publish", "published ports, in pairs", guests::publish),
        ("ssh", "logins, in pairs", guests::ssh),
        ("exec", "exec round trips, in pairs", rows::exec),
        ("import", "making images, in pairs", images::import),
        ("build", "building again", images::rebuild),
    ];
    for (name, what, measure) in groups {
        if wanted(name) {
            println!("{what}");
            measure(&mut report, &daemon);
        }
    }
    if wanted("sharing") {
        println!("the disk that images of one base take");
        images::sharing(&mut report, &bed, &daemon);
    }
    daemon.finish();
    if wanted("disks") {
        println!("the same with disks that share blocks, on XFS");
        disks::reflink(&mut report, &bed);
        println!("{}", disks::DM);
    }
    network::measure(&mut report, &bed, wanted);
    if wanted("thousand") {
        println!("a thousand machines");
        scale::thousand(&mut report, &bed);
    }
    report.finish(&bed.directory.with_file_name("bench"));
}
