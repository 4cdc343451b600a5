//! `make bench`: what Banger adds to the parts it is made of.
//!
//! Absolute times say something about the machine they were taken on; ratios say something about Banger. So each figure
//! that has a counterpart is taken in pairs, ours and the raw one in turn within one run, and medians are compared. The
//! table goes to standard output, all samples go to `target/bench/<date>.json`.

mod raw;
mod report;
mod rows;

use std::time::Duration;

use e2e::{Daemon, Settings, Testbed};

use report::Report;

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

    println!("the daemon at rest (30 s)");
    rows::idle(&mut report, &daemon, "no machine", Duration::from_secs(30));
    println!("short commands");
    rows::short_commands(&mut report, &daemon);
    println!("creating machines");
    rows::create(&mut report, &daemon);
    println!("start to first exec, in pairs");
    rows::start(&mut report, &daemon);
    println!("exec round trips, in pairs");
    rows::exec(&mut report, &daemon);
    daemon.finish();
    report.finish(&bed.directory.with_file_name("bench"));
}
